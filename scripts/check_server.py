"""Check a server that claims to embed texts with an E5 model: one line a property, with evidence and cure.

    .venv/bin/python scripts/check_server.py --url http://127.0.0.1:8080 --api tei --model multilingual-e5-small
    .venv/bin/python scripts/check_server.py --url http://127.0.0.1:5000 --api cog --model e5-mistral-tiny --json
    .venv/bin/python scripts/check_server.py --model e5-mistral-7b-instruct --record FILE
    .venv/bin/python scripts/check_server.py --url … --api openai --model e5-mistral-7b-instruct --fixtures FILE

Exit status: 0 nothing is wrong, 1 something is wrong, 2 the server could not be asked, or wrong arguments.
"""

import sys

from evaluation.server_check.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
