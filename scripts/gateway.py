"""Serve OpenAI's, Replicate's and Cog's APIs, and a web page, in front of a Cog server of this model (see e5_gateway/).

    python scripts/gateway.py                                   also starts a Cog server; listens on 127.0.0.1:8000
    python scripts/gateway.py --open                            and opens the web page in a browser
    python scripts/gateway.py --target http://10.0.0.5:5000     uses a running Cog server; may be repeated
    python scripts/gateway.py --targets servers.txt             those of a file, which SIGHUP makes it read again
    GATEWAY_API_KEY=… python scripts/gateway.py --host 0.0.0.0  open to other machines, which need the key

On SIGTERM or Ctrl+C the gateway lets requests finish for --grace seconds, then stops the Cog server that it started.
Accepted predictions that have not ended continue at the next start.
"""

import sys

from e5_gateway.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
