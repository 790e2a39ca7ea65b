"""The real Cog server without Docker: the same endpoints, validation and concurrency as the image has.

    python scripts/serve.py                           127.0.0.1:5000
    python scripts/serve.py --host 0.0.0.0 --port 80

It checks first what the server itself would not say: a wrong setting or a port in use ends it with one line and
status 2. Then this process becomes the server, so that signals and the exit status are the server's own. Should the
model not load, the log has the reason and /health-check says SETUP_FAILED.
"""

import argparse
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

from e5.errors import SettingsError
from e5.settings import Settings
from e5_cog import openapi, static_schema
from e5_cog.repository import ROOT


class StartError(RuntimeError):
    """The server cannot be started: says why and what to do."""


def main(argv: list[str]) -> None:
    """Become the server, or print one line and exit with status 2."""
    parser = argparse.ArgumentParser(description="Serve the model over HTTP with Cog's own server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.from_environment()
        host = listening_host(arguments.host, arguments.port)
        environment = prepare(arguments.port, settings)
    except (SettingsError, StartError, static_schema.SignatureError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "cog.server.http", "--host", host], environment)


def listening_host(host: str, port: int) -> str:
    """The host as the server wants it, which knows numbers alone. Raises StartError unless it could listen there."""
    if not 0 < port < 65536:
        raise StartError(f"--port {port}: pass a port from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does it: connections that were closed a moment ago do not count as a port in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        return f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port} ({error.strerror}): pass another --host or --port") from None


def prepare(port: int, settings: Settings) -> dict[str, str]:
    """Write the schema where the server looks for it; return the environment that Cog's build gives an image."""
    if importlib.util.find_spec("cog") is None:
        raise StartError('cog is not installed: pip install "cog>=0.22,<0.24"')
    signature = static_schema.read(ROOT / "predict.py")
    content = json.dumps(openapi.openapi(signature))
    try:
        if not openapi.SCHEMA.is_file() or openapi.SCHEMA.read_text("utf-8") != content:
            openapi.write_atomically(openapi.SCHEMA, content)
    except OSError as error:
        raise StartError(
            f"cannot write {openapi.SCHEMA} ({error.strerror}): run from a folder that can be written"
        ) from None
    # The server runs in the repository's folder: what is relative to this one must be said in full.
    weights = {} if settings.weights is None else {"E5_WEIGHTS": str(settings.weights.resolve())}
    return {
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        **os.environ,
        **weights,
        "COG_MAX_CONCURRENCY": str(signature.concurrency),
        "PORT": str(port),
        # The server starts its worker with the `python` that PATH finds first, not with its own interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
