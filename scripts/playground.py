"""Serve the gateway (all options of scripts/gateway.py) with a web page for the model at `/`.

    python scripts/playground.py                  also starts a Cog server, and opens http://127.0.0.1:8000
    python scripts/playground.py --no-browser     prints the address instead

The page calls the gateway's public HTTP API. If GATEWAY_API_KEY is set, it asks for the key.
"""

import sys

from e5_playground.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
