"""The engines' processes, seen from the parent: start one, ask it, check that the others are idle meanwhile."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from e5_cog.server import stop

Json = dict[str, Any]


class EngineProcess:
    """A running `benchmarks.peers.worker`. `setup_seconds`: from the start of the process to its first vector."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start the process and wait for its first vector. `log`: gets its standard error."""
        started = time.perf_counter()
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment
            )
        self._usage = psutil.Process(self._process.pid)
        self.facts = self._answer()
        self.setup_seconds = time.perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the process."""
        stop(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def ask(self, question: str, **arguments: Any) -> Json:
        """Call a method of `Worker`. Raises RuntimeError with the end of the log if the process fails."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead: the missing answer says why
            self._process.stdin.write(json.dumps({"question": question, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def cpu_seconds(self) -> float:
        """CPU time of all threads since the start, in steps of 10 ms."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def _answer(self) -> Json:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            answer: Json = json.loads(line)
            return answer
        status = stop(self._process)
        tail = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"an engine's process exited with status {status}; its log ends with:\n{tail}")


class Turns:
    """Asks one process at a time and adds up the CPU time that the others use meanwhile.

    An engine whose threads spin after its work is done would slow down the next one.
    """

    def __init__(self, processes: Mapping[str, EngineProcess]) -> None:
        self._processes = processes
        self._seconds = self._idle_cpu_seconds = 0.0

    def ask(self, name: str, question: str, **arguments: Any) -> Json:
        others = [process for other, process in self._processes.items() if other != name]
        before, started = sum(process.cpu_seconds() for process in others), time.perf_counter()
        answer = self._processes[name].ask(question, **arguments)
        self._seconds += time.perf_counter() - started
        self._idle_cpu_seconds += sum(process.cpu_seconds() for process in others) - before
        return answer

    @property
    def idle_share(self) -> float:
        """CPU time of the processes that were not asked, as a share of one core."""
        return self._idle_cpu_seconds / self._seconds
