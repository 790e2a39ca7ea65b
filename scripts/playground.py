"""The gateway (scripts/gateway.py, with all its options) and a web page for the model at `/`.

    python scripts/playground.py                  starts a Cog server too, and opens http://127.0.0.1:8000
    python scripts/playground.py --no-browser     only says where it is

The page calls the model by the gateway's HTTP API, as everyone does. Where GATEWAY_API_KEY is set it asks for the key.
"""

import sys

from e5_playground.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
