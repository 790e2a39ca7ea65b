"""Evaluate an E5 model on BEIR and MTEB tasks by the authors' or the leaderboard's protocol.

    .venv/bin/python scripts/evaluate.py --model e5-small --tasks beir-small --protocol unilm --out scores.json
    .venv/bin/python scripts/evaluate.py --model e5-small --tasks sts --against http://127.0.0.1:8080 --api tei

Needs the extra `evaluate`. An interrupted run continues. Exit status: 0 success, 1 a score outside its tolerance, 2
failure. docs/evaluation.md has the protocols and the format of local data.
"""

import sys

try:
    from evaluation.main import main
except ModuleNotFoundError as error:
    print(f"evaluate.py: {error}: pip install -e '.[evaluate]'", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
