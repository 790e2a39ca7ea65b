"""The Cog servers of this machine, one for each GPU or several on its CPU: started, and started again when they end."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from e5.errors import SettingsError
from e5.settings import usable_cores
from e5_cog.repository import ROOT
from e5_cog.server import free_port, stop
from e5_gateway.logs import log
from e5_gateway.settings import KEY_VARIABLE

BROKEN = ("UNHEALTHY", "DEFUNCT", "UNRESPONSIVE", "FOREIGN", "SETUP_FAILED")
"""States that only a new start ends. A setup may have failed for want of memory that is free a moment later."""
BROKEN_SECONDS = 10.0
"""A server that has been broken for so long is killed."""
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0
"""Seconds before a server is started again, doubled each time, until one has run for STABLE_SECONDS."""
STABLE_SECONDS = 300.0
POLL_SECONDS = 0.2
WRONG_START = 2
"""Exit status of scripts/serve.py for a wrong setting or a missing package."""

Environment = dict[str, str]


class Fleet:
    """A server on a free port of 127.0.0.1 for each environment."""

    def __init__(self, environments: Sequence[Environment]) -> None:
        self._servers = {f"http://127.0.0.1:{free_port()}": environment for environment in environments}
        self._closing = threading.Event()

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self._servers)

    @contextmanager
    def running(self, state: Callable[[str], str], on_wrong_start: Callable[[], None]) -> Iterator[None]:
        """Start the servers, start them again when they end or break, and stop them at the end of the block.

        `state`: returns the state of the server with that address. `on_wrong_start`: called if the first start of a
        server fails for good; the server has printed the reason. Other threads call both.
        """
        self._state, self._on_wrong_start = state, on_wrong_start
        threads = [threading.Thread(target=self._supervise, args=server) for server in self._servers.items()]
        try:
            for thread in threads:
                thread.start()
            yield
        finally:
            self._closing.set()
            for thread in threads:
                thread.join()

    def _supervise(self, url: str, environment: Environment) -> None:
        pause = MIN_PAUSE
        for start in range(sys.maxsize):
            started = time.monotonic()
            try:
                process = _start(url, environment)
            except OSError as error:  # no memory or no process is left: maybe later
                reason: dict[str, object] = {"error": str(error)}
            else:
                try:
                    broken = self._wait(process, url)
                finally:
                    _end(process)
                if start == 0 and process.returncode == WRONG_START and not self._closing.is_set():
                    self._on_wrong_start()
                    return
                reason = {"state": broken} if broken else {"exit_status": process.returncode}
            if self._closing.is_set():
                return
            if time.monotonic() - started > STABLE_SECONDS:
                pause = MIN_PAUSE
            log.warning("server started again", extra={"fields": {"target": url, **reason, "after_seconds": pause}})
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, MAX_PAUSE)

    def _wait(self, process: "subprocess.Popen[bytes]", url: str) -> str:
        """Wait until the server ends or the fleet closes; "" then. Kills a broken server, and returns its state."""
        healthy = time.monotonic()
        while process.poll() is None and not self._closing.wait(POLL_SECONDS):
            state = self._state(url)
            if state not in BROKEN:
                healthy = time.monotonic()
            elif time.monotonic() - healthy > BROKEN_SECONDS:
                _signal(process, signal.SIGKILL)
                return state
        return ""


def _start(url: str, environment: Environment) -> "subprocess.Popen[bytes]":
    inherited = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port", url.rpartition(":")[2]],
        env=inherited | environment,
        start_new_session=True,  # Ctrl+C must not reach it: the gateway lets requests finish first
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a server, and its worker if the server has left it behind."""
    stop(process)
    _signal(process, signal.SIGKILL)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def on_gpus(value: str) -> list[Environment]:
    """The environments of servers on the GPUs of --gpus: `all`, or a list such as 0,1. Raises SettingsError."""
    names = _all_gpus() if value == "all" else value.split(",")
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[0-9]+|(GPU|MIG)-[\w/-]+", name) for name in names):
        raise SettingsError(f"--gpus {value}: pass `all`, or each GPU once, such as 0,1")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def copies(count: int) -> list[Environment]:
    """The environments of `count` servers that share this machine's cores. Raises SettingsError."""
    if count < 1:
        raise SettingsError(f"--copies {count}: pass 1 or more")
    if count == 1:
        return [{}]
    cores = usable_cores()
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))
    return [{"OMP_NUM_THREADS": threads} for _ in range(count)]


def _all_gpus() -> list[str]:
    """Those of CUDA_VISIBLE_DEVICES if it is set, else the driver's. Raises SettingsError."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"--gpus all: nvidia-smi does not list the GPUs ({error}): name them, as 0,1") from None
    if not listed:
        raise SettingsError("--gpus all: this machine has no GPU: leave it out, or use --copies")
    return listed
