"""OpenAI's and Replicate's APIs, and Cog's own, in front of a Cog server of this model (see gateway/).

    python scripts/gateway.py                                   starts a Cog server too; 127.0.0.1:8000
    python scripts/gateway.py --target http://10.0.0.5:5000     in front of one that runs
    GATEWAY_API_KEY=… python scripts/gateway.py --host 0.0.0.0  for other machines, which need the key

SIGTERM and Ctrl+C let requests finish for a while, then end the Cog server that was started here, too. Predictions
that were accepted and have not ended are taken up at the next start.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

import uvicorn
from fastapi import FastAPI

from e5.errors import SettingsError as ModelSettingsError
from e5.settings import Settings as ModelSettings
from e5_cog import static_schema
from e5_cog.repository import IS_CLONE, PREDICTOR, ROOT
from e5_cog.serve import StartError, listening_host
from e5_cog.server import free_port, stop
from e5_gateway import app, middleware
from e5_gateway.errors import SettingsError
from e5_gateway.settings import KEY_VARIABLE, Settings

DATABASE = (ROOT if IS_CLONE else Path()) / ".gateway" / "predictions.sqlite3"


def main(argv: list[str], serve_with: Callable[[FastAPI, Settings], None] | None = None) -> int:
    """Serve until a signal; the exit status. One line and status 2 for a wrong option.

    `serve_with` adds a page at `/` to the application (scripts/playground.py).
    """
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(arguments, free_port())
        listening_host(settings.host, settings.port)
        if arguments.target is None:
            if not IS_CLONE:
                raise SettingsError("--target is missing: a Cog server can be started here from a clone only")
            ModelSettings.from_environment()  # the Cog server would refuse it, too; here it is one line
    except (SettingsError, ModelSettingsError, StartError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    application = app.create(settings, page=serve_with is not None)
    if serve_with is not None:
        serve_with(application, settings)
    return serve(application, settings, arguments.grace, own_server=arguments.target is None)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="OpenAI's and Replicate's APIs for a Cog server of this model.")
    parser.add_argument("--target", help="address of a running Cog server (default: start one here, as E5_* say)")
    parser.add_argument("--host", default=Settings.host, help=f"address to listen on (default: {Settings.host})")
    parser.add_argument("--port", type=int, default=Settings.port, help=f"port (default: {Settings.port})")
    parser.add_argument("--model", help="the model's name, should the server not tell it")
    parser.add_argument("--concurrency", type=int, help="predictions that the server runs at a time (default: its own)")
    parser.add_argument("--queue", type=int, default=Settings.queue, help="requests beyond that which may wait")
    parser.add_argument("--grace", type=int, default=20, help="seconds that requests have to finish after SIGTERM")
    parser.add_argument("--database", type=Path, default=DATABASE, help="SQLite file of the predictions' states")
    parser.add_argument("--log-level", choices=["INFO", "WARNING", "ERROR"], default="INFO", help="INFO: each request")
    return parser


def read_settings(arguments: argparse.Namespace, port: int) -> Settings:
    """`port`: where a Cog server of our own will listen. Raises SettingsError."""
    middleware.log_to_stderr(arguments.log_level)
    own = arguments.concurrency
    return Settings(
        target=arguments.target or f"http://127.0.0.1:{port}",
        database=arguments.database,
        host=arguments.host,
        port=arguments.port,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        model=arguments.model,
        concurrency=static_schema.read(PREDICTOR).concurrency if own is None else own,
        queue=arguments.queue,
    )


def serve(application: FastAPI, settings: Settings, grace: int, *, own_server: bool) -> int:
    """Listen until SIGTERM or SIGINT; the exit status."""
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        access_log=False,  # e5_gateway/middleware.py writes one line a request, without paths
        log_level="critical",  # what goes wrong in the application is logged there, without texts of users
        timeout_graceful_shutdown=grace,
        server_header=False,
    )
    server = Server(config)
    more_files()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if not own_server:
        return run(server, settings)
    with cog_server(settings) as process:
        # Without its own Cog server this process is of no use: it ends with it.
        def watch() -> None:
            process.wait()
            server.should_exit = True

        threading.Thread(target=watch, daemon=True).start()
        return run(server, settings) or (1 if process.poll() else 0)


class Server(uvicorn.Server):
    """uvicorn's, which would wait for what a page at `/` streams until the person leaves."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.open.close_pages()  # type: ignore[union-attr]  # it is the FastAPI application
        await super().shutdown(sockets)


def more_files() -> None:
    """Each request takes two connections, and the usual limit is 1,024: take what the system allows."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 65_536 if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < most:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _leave(*_: object) -> None:
    """Before uvicorn takes signals over, and after: it raises them again when all is done."""
    raise SystemExit(0)


def run(server: uvicorn.Server, settings: Settings) -> int:
    """Listen; the exit status."""
    key = f"with {KEY_VARIABLE}" if settings.api_key else "for this machine alone"
    print(f"e5-cog gateway on http://{settings.host}:{settings.port} ({key}) → {settings.target}", file=sys.stderr)
    with contextlib.suppress(SystemExit):  # uvicorn's own status, which differs from release to release
        server.run()
    return 0 if server.started else 2


@contextlib.contextmanager
def cog_server(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """The Cog server of this repository at the target's address, ended with SIGTERM."""
    port = settings.target.rpartition(":")[2]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port", port],
        start_new_session=True,  # Ctrl+C is for the gateway, which lets requests finish first
    )
    try:
        yield process
    finally:
        stop(process)
