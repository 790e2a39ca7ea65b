"""Load and faults on the real server, every answer checked: a card for people, then one line of JSON.

    python scripts/loadtest.py            10,000 predictions by 64 clients, then the faults: some minutes
    python scripts/loadtest.py --quick    300 predictions: what the suite runs

The servers are scripts/serve.py on the embedded model (or that of E5_MODEL), in float32, so that every vector can be
compared tightly with that of its text alone. Exit status: 0 all is good; 1 something is not.
"""

import sys

from loadtesting.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
