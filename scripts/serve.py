"""Cog's server without Docker, with the endpoints, validation and concurrency of the image.

    python scripts/serve.py                           127.0.0.1:5000
    python scripts/serve.py --host 0.0.0.0 --port 80

A wrong setting or a port in use ends the program with one line and status 2. Then the process becomes the server, so
signals reach the server and its exit status is the program's. If the model fails to load, the log has the reason and
/health-check reports SETUP_FAILED.
"""

import sys

from e5_cog.serve import main

if __name__ == "__main__":
    main(sys.argv[1:])
