"""`python -m e5_gateway`: the same program as scripts/gateway.py."""

import sys

from e5_gateway.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="python -m e5_gateway"))
