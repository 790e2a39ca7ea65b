"""Run scripts/serve.py as a child process: for the demo, the gateway, tests and benchmarks.

What that program does is in `e5_cog.serve`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e5_cog.repository import ROOT


@dataclass(frozen=True)
class Server:
    """A running server whose setup has succeeded or failed. `health`: its /health-check response then."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    health: dict[str, object]


@contextmanager
def running(
    environment: Mapping[str, str] | None = None, *, timeout: float = 120, port: int | None = None
) -> Iterator[Server]:
    """Start the server on 127.0.0.1, on a free port by default; wait for its setup; stop it at the end.

    Raises RuntimeError with the end of its log if it exits, or setup takes more than `timeout` seconds.
    """
    port = free_port() if port is None else port
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port", str(port)],
                env={**os.environ, **(environment or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Server(url, process, log, _wait(url, process, log, timeout))
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM, and SIGKILL after 20 seconds. Returns the exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def python_path() -> str:
    """PYTHONPATH for a child process: the repository, then the parent's PYTHONPATH."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, timeout: float) -> dict[str, object]:
    """Wait for the server's setup. Returns its /health-check response. Raises RuntimeError with the end of its log."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health-check", timeout=5) as response:
                health: dict[str, object] = json.load(response)
        except OSError:  # not listening yet, or too busy to answer
            health = {"status": "STARTING"}
        if health["status"] != "STARTING":
            return health
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the server is not ready (exit status: {process.poll()}); its log ends with:\n{tail}")
