"""The gateway as a program: options, its own Cog servers, and shutdown by signals."""

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

import uvicorn
from fastapi import FastAPI

from e5.errors import SettingsError
from e5.settings import Settings
from e5_cog.repository import IS_CLONE, ROOT
from e5_cog.serve import StartError, listening_host
from e5_gateway import app, browser
from e5_gateway.connection import Connection, Connections, max_connections
from e5_gateway.destinations import Inner
from e5_gateway.fleet import Fleet, copies, on_gpus
from e5_gateway.logs import log_to_stderr
from e5_gateway.settings import KEY_VARIABLE, GatewaySettings, read_targets

DATABASE = (ROOT if IS_CLONE else Path()) / ".gateway" / "predictions.sqlite3"
MAX_ANSWER_NUMBERS = "E5_MAX_ANSWER_NUMBERS"


def main(argv: list[str], *, program: str | None = None) -> int:
    """Serve until a signal and return the exit status. A wrong option exits with one line and status 2.

    `program`: the name in messages, by default the script's.
    """
    parser = argument_parser(program)
    arguments = parser.parse_args(argv)
    try:
        fleet = own_servers(arguments)
        settings = read_settings(arguments, fleet)
        listening_host(settings.host, settings.port)
    except (SettingsError, StartError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    log_to_stderr(arguments.log_level)
    application = app.create(settings)
    if arguments.open:
        browser.open_when_ready(settings)
    return serve(application, settings, arguments.grace, fleet)


def argument_parser(program: str | None) -> argparse.ArgumentParser:
    description = "OpenAI's, Cohere's, text-embeddings-inference's and Replicate's APIs for a Cog server of this model."
    parser = argparse.ArgumentParser(prog=program, description=description)
    servers = parser.add_mutually_exclusive_group()
    servers.add_argument(
        "--target",
        action="append",
        metavar="URL",
        help="address of a running Cog server; may be repeated (default: start one, configured by E5_*)",
    )
    servers.add_argument("--targets", type=Path, metavar="FILE", help="file with a URL a line, read again on SIGHUP")
    servers.add_argument("--gpus", metavar="all|0,1,…", help="start a Cog server on each of these GPUs")
    servers.add_argument("--copies", type=int, metavar="N", help="start N Cog servers that share the machine's cores")
    parser.add_argument("--host", default=GatewaySettings.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=GatewaySettings.port, help="port (default: %(default)s)")
    parser.add_argument("--model", help="the model's name, if the server does not report it")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=GatewaySettings.concurrency,
        help="predictions sent to each server at a time (default: %(default)s)",
    )
    parser.add_argument("--queue", type=int, default=GatewaySettings.max_waiting, help="further requests that may wait")
    parser.add_argument("--grace", type=int, default=20, help="seconds that requests have to finish after SIGTERM")
    parser.add_argument("--database", type=Path, default=DATABASE, help="SQLite file of the predictions")
    parser.add_argument(
        "--webhooks-to",
        action="append",
        default=[],
        metavar="HOST",
        help="inner host or network that webhooks may reach",
    )
    parser.add_argument(
        "--files-from",
        action="append",
        default=[],
        metavar="HOST",
        help="inner host or network that the URL of an input file may name",
    )
    parser.add_argument("--public-url", help="the gateway's address for its clients, if a proxy is in front")
    parser.add_argument("--open", action="store_true", help="open the web page in a browser when the model is ready")
    parser.add_argument("--log-level", choices=["INFO", "WARNING", "ERROR"], default="INFO", help="INFO: each request")
    return parser


def own_servers(arguments: argparse.Namespace) -> Fleet | None:
    """The Cog servers that the gateway starts itself; None if the options name running ones. Raises SettingsError."""
    if arguments.target or arguments.targets is not None:
        return None
    if not IS_CLONE:
        raise SettingsError("--target is missing: only a clone of the repository can start a Cog server")
    Settings.from_environment()  # the Cog server would refuse wrong settings too, but not in one line
    if arguments.gpus is not None:
        return Fleet(on_gpus(arguments.gpus))
    return Fleet(copies(1 if arguments.copies is None else arguments.copies))


def read_settings(arguments: argparse.Namespace, fleet: Fleet | None) -> GatewaySettings:
    """Settings from the options and the environment. `fleet`: the Cog servers started here. Raises SettingsError."""
    targets = fleet.urls if fleet else arguments.target or read_targets(arguments.targets)
    # The other E5_* variables configure a Cog server, which may run elsewhere.
    limits = Settings.from_environment({MAX_ANSWER_NUMBERS: os.environ.get(MAX_ANSWER_NUMBERS, "")}).limits
    return GatewaySettings(
        targets=tuple(targets),
        targets_file=arguments.targets,
        database=arguments.database,
        host=arguments.host,
        port=arguments.port,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        model=arguments.model,
        concurrency=arguments.concurrency,
        max_waiting=arguments.queue,
        max_answer_numbers=limits.answer_numbers,
        webhooks_to=Inner.parse("--webhooks-to", arguments.webhooks_to),
        files_from=Inner.parse("--files-from", arguments.files_from),
        public_url=arguments.public_url and arguments.public_url.rstrip("/"),
    )


def serve(application: FastAPI, settings: GatewaySettings, grace: int, fleet: Fleet | None) -> int:
    """Listen until SIGTERM or SIGINT and return the exit status. `grace`: seconds that requests have to finish."""
    server = listener(application, settings, grace)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    if fleet is None:
        return run(server, settings)
    wrong_start = threading.Event()

    def give_up() -> None:
        wrong_start.set()
        server.should_exit = True

    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal closes; without this, the servers would stay
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with fleet.running(application.state.targets.state_of, give_up):
        try:
            return run(server, settings) or int(wrong_start.is_set())
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # nor does a second Ctrl+C leave them


def listener(application: FastAPI, settings: GatewaySettings, grace: int) -> "Server":
    """The HTTP server, not yet listening, with limits on its connections (`e5_gateway.connection`)."""
    connections = Connections(max_connections(raise_file_limit()), application.state.metrics.count_cut_off)
    config = uvicorn.Config(
        application,
        http=functools.partial(Connection, connections=connections),  # type: ignore[arg-type]  # it is only called
        ws="none",  # neither the APIs nor the page have a WebSocket
        host=settings.host,
        port=settings.port,
        access_log=False,  # middleware.py logs one line per request, without the path
        log_level="critical",  # middleware.py logs errors, without users' texts
        timeout_graceful_shutdown=grace,
        server_header=False,
    )
    return Server(config, connections)


class Server(uvicorn.Server):
    """uvicorn's server, but slow clients are cut off."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self.connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 10 == 0:
            self.connections.check()
        return await super().on_tick(counter)


def raise_file_limit() -> int:
    """Raise the limit of open files, usually 1,024, as far as the system allows, and return it."""
    limit = 65_536
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= limit:
            return limit
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            limit = soft
    return limit


def _exit(*_: object) -> None:
    """Signal handler before uvicorn installs its own, and after: uvicorn raises the signals again when it is done."""
    raise SystemExit(0)


def run(server: uvicorn.Server, settings: GatewaySettings) -> int:
    """Listen and return the exit status."""
    access = f"with {KEY_VARIABLE}" if settings.api_key else "this machine only"
    print(
        f"e5-cog gateway on http://{settings.host}:{settings.port} ({access}) → {', '.join(settings.targets)}",
        file=sys.stderr,
    )
    with contextlib.suppress(SystemExit):  # uvicorn's own status differs between releases
        server.run()
    return 0 if server.started else 2
