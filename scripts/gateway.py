"""OpenAI's and Replicate's APIs, and Cog's own, in front of a Cog server of this model (see gateway/).

    python scripts/gateway.py                                   starts a Cog server too; 127.0.0.1:8000
    python scripts/gateway.py --target http://10.0.0.5:5000     in front of one that runs
    GATEWAY_API_KEY=… python scripts/gateway.py --host 0.0.0.0  for other machines, which need the key

SIGTERM and Ctrl+C let requests finish for a while, then end the Cog server that was started here, too. Predictions
that were accepted and have not ended are taken up at the next start.
"""

import sys

from e5_gateway.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
