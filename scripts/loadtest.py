"""Load and fault test of the real server that checks every response: prints a card, then one line of JSON.

    python scripts/loadtest.py            20,000 predictions by 64 clients, then the faults; takes a few minutes
    python scripts/loadtest.py --quick    300 predictions, as in the test suite
    python scripts/loadtest.py --servers 3   10,000 to three servers behind a gateway, which are killed and stopped

Starts scripts/serve.py on the embedded model (or E5_MODEL) in float32, so that vectors from shared batches can be
compared closely with those of separate calls. Exit status: 0 if everything passed, else 1.
"""

import sys

from loadtesting.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
