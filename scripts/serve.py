"""The real Cog server without Docker: the same endpoints, validation and concurrency as the image has.

    python scripts/serve.py                           127.0.0.1:5000
    python scripts/serve.py --host 0.0.0.0 --port 80

It checks first what the server itself would not say: a wrong setting or a port in use ends it with one line and
status 2. Then this process becomes the server, so that signals and the exit status are the server's own. Should the
model not load, the log has the reason and /health-check says SETUP_FAILED.
"""

import sys

from e5_cog.serve import main

if __name__ == "__main__":
    main(sys.argv[1:])
