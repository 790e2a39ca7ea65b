"""Cog's server without Docker, with the endpoints, validation and concurrency of the image.

    python scripts/serve.py                           127.0.0.1:5000
    python scripts/serve.py --host 0.0.0.0 --port 80
    python scripts/serve.py --gpus all                a server on each GPU behind a gateway on 127.0.0.1:8000
    python scripts/serve.py --copies 3                three servers that share the CPU, behind a gateway

A wrong setting or a port in use ends the program with one line and status 2. Then the process becomes the server, so
signals reach the server and its exit status is the program's. If the model fails to load, the log has the reason and
/health-check reports SETUP_FAILED. With --gpus or --copies, the other options are those of scripts/gateway.py.
"""

import sys

from e5_cog.serve import main

if __name__ == "__main__":
    if any(option.partition("=")[0] in ("--gpus", "--copies") for option in sys.argv[1:]):
        from e5_gateway.main import main as gateway

        sys.exit(gateway(sys.argv[1:]))
    main(sys.argv[1:])
