"""Embed files of texts into Parquet files of vectors. Needs the extra `corpus`; docs/corpora.md has examples.

.venv/bin/python scripts/corpus.py run texts/*.jsonl --out vectors/     goes on where it ended if started again
.venv/bin/python scripts/corpus.py status vectors/
.venv/bin/python scripts/corpus.py finish vectors/                      checks every file, writes manifest.json
.venv/bin/python scripts/corpus.py search vectors/ "how tall is the tower?"
"""

import sys

try:
    from e5.corpus.main import main
except ModuleNotFoundError as error:
    print(f"corpus.py: {error}: pip install -e '.[corpus]'", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
