"""Run the gateway as a subprocess in front of a Cog server: for benchmarks and tests."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e5_cog.server import Server, free_port, stop
from e5_gateway.settings import KEY_VARIABLE

READY_SECONDS = 30.0


@dataclass(frozen=True)
class Gateway:
    """A listening gateway. `server`: the Cog server behind it, if it was started with the gateway."""

    url: str
    server: Server | None
    process: subprocess.Popen[bytes]
    log: Path
    database: Path


@contextmanager
def running(
    target: str | Sequence[str],
    folder: Path,
    *options: str,
    key: str | None = None,
    port: int | None = None,
    wait: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Gateway]:
    """Start a gateway in front of one target or several, with log and database in `folder`; SIGTERM at the end.

    With no target, the options say which servers there are. `environment`: more variables.

    Waits until it listens, and with `wait` until it knows its model (GET /v1/models answers 200). A second gateway in
    the same folder continues with the same database and log.
    """
    port = free_port() if port is None else port
    url, log, database = f"http://127.0.0.1:{port}", folder / "gateway.log", folder / "predictions.sqlite3"
    targets = [target] if isinstance(target, str) else target
    command = [sys.executable, "-m", "e5_gateway", "--port", str(port)]
    command += [option for url in targets for option in ("--target", url)]
    inherited = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--database", str(database), *options],
            env=inherited | dict(environment or {}) | ({KEY_VARIABLE: key} if key is not None else {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    gateway = Gateway(url, None, process, log, database)
    try:
        _wait(gateway, key, ready=wait)
        yield gateway
    finally:
        stop(process)


def _wait(gateway: Gateway, key: str | None, *, ready: bool) -> None:
    """Wait for an answer, with `ready` for a 200. Raises RuntimeError with the end of the log."""
    request = urllib.request.Request(gateway.url + ("/v1/models" if ready else "/health-check"))
    request.add_header("Authorization", f"Bearer {key}")
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and gateway.process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except urllib.error.HTTPError as response:
            response.close()
            if not ready:
                return
        except OSError:  # not listening yet
            pass
        time.sleep(0.05)
    tail = gateway.log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the gateway is not ready (exit status: {gateway.process.poll()}); its log ends with:\n{tail}")
