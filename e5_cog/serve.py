"""scripts/serve.py: check settings and port, write the schema, then turn this process into Cog's server.

To run that program as a child process, see `e5_cog.server`.
"""

import argparse
import importlib.util
import ipaddress
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
    """The server cannot start. The message has the cause and the cure."""


def main(argv: list[str]) -> None:
    """Replace this process with the server, or print one line and exit with status 2."""
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
    if not ipaddress.ip_address(host.strip("[]")).is_loopback:
        print(
            f"{parser.prog}: warning: anyone who can reach {host}:{arguments.port} may use and shut down the server: "
            "put the gateway in front, and keep the server in a container's network (docs/serving.md)",
            file=sys.stderr,
        )
    os.chdir(ROOT)
    os.umask(0o077)  # the server writes large requests to files
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "cog.server.http", "--host", host], environment)


def listening_host(host: str, port: int) -> str:
    """The host as a numeric address, which the server needs. Raises StartError if it cannot listen there."""
    if not 0 < port < 65536:
        raise StartError(f"--port {port}: pass a port from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Like the server: ignore connections that were closed a moment ago.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        return f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port} ({error.strerror}): pass another --host or --port") from None


def prepare(port: int, settings: Settings) -> dict[str, str]:
    """Write the schema file that the server reads. Returns the server's environment, like that of Cog's image."""
    if importlib.util.find_spec("cog") is None:
        raise StartError('cog is not installed: pip install "cog>=0.22,<0.24"')
    signature = static_schema.read(ROOT / "predict.py")
    content = json.dumps(openapi.openapi(signature))
    try:
        if not openapi.SCHEMA.is_file() or openapi.SCHEMA.read_text("utf-8") != content:
            openapi.write_atomically(openapi.SCHEMA, content)
    except OSError as error:
        raise StartError(f"cannot write {openapi.SCHEMA} ({error.strerror}): run from a writable folder") from None
    # The server runs in the repository's folder, where a relative path means another folder.
    weights = {} if settings.weights is None else {"E5_WEIGHTS": str(settings.weights.resolve())}
    # The server does not need the gateway's key, which the gateway may have started it with.
    inherited = {name: value for name, value in os.environ.items() if name != "GATEWAY_API_KEY"}
    return {
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "TOKIO_WORKER_THREADS": "1",  # see cog.yaml
        **inherited,
        **weights,
        "COG_MAX_CONCURRENCY": str(signature.concurrency),
        "PORT": str(port),
        # The server starts its worker with the first `python` on PATH, not with its own interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
