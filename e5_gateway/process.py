"""The real gateway – scripts/gateway.py – started in front of a Cog server and stopped: for benchmark and tests."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e5_cog.server import Server, free_port, stop
from e5_gateway.settings import KEY_VARIABLE

READY_SECONDS = 30.0


@dataclass(frozen=True)
class Gateway:
    """A gateway that listens. `server` is the Cog server behind it, where one was started with it."""

    url: str
    server: Server | None
    process: subprocess.Popen[bytes]
    log: Path
    database: Path


@contextmanager
def running(
    target: str, folder: Path, *options: str, key: str | None = None, port: int | None = None, wait: bool = True
) -> Iterator[Gateway]:
    """A gateway in front of `target`, ended with SIGTERM; its log and its database lie in `folder`.

    `wait`: until it knows its model (GET /v1/models answers 200); otherwise only until it listens.
    A second gateway in the same folder goes on with the same database and log.
    """
    port = free_port() if port is None else port
    url, log, database = f"http://127.0.0.1:{port}", folder / "gateway.log", folder / "predictions.sqlite3"
    command = [sys.executable, "-m", "e5_gateway", "--target", target, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--database", str(database), *options],
            env=environment | ({KEY_VARIABLE: key} if key is not None else {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    one = Gateway(url, None, process, log, database)
    try:
        _wait(one, key, ready=wait)
        yield one
    finally:
        stop(process)


def _wait(one: Gateway, key: str | None, *, ready: bool) -> None:
    """Until it answers, with a 200 where `ready`. Raises RuntimeError with the end of its log."""
    request = urllib.request.Request(one.url + ("/v1/models" if ready else "/health-check"))
    request.add_header("Authorization", f"Bearer {key}")
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and one.process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except urllib.error.HTTPError as answer:
            answer.close()
            if not ready:
                return
        except OSError:  # not listening yet
            pass
        time.sleep(0.05)
    tail = one.log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the gateway is not ready (exit status: {one.process.poll()}); its log ends with:\n{tail}")
