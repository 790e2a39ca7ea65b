"""Several processes on one plan, each with a share of the units and a GPU of its own, or some of the CPU's cores."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from e5.corpus.unit import Receipt

log = logging.getLogger(__name__)
MAX_DEATHS = 3
"""A process that is killed this often without finishing a unit in between is given up."""


@dataclass(frozen=True)
class Share:
    """`arguments`: of the Python process. `environment`: more variables. `undone`: counts the share's units left."""

    arguments: Sequence[str]
    environment: dict[str, str]
    undone: Callable[[], int]


def run_shares(shares: Sequence[Share], report: Callable[[Receipt], None]) -> int:
    """Run a process for each share, and again if it is killed. Returns the highest exit status.

    A process prints a receipt as a JSON line after each unit; `report` is called with it, by one thread at a time.
    Interrupting this process interrupts all of them.
    """
    lock = threading.Lock()
    workers = [_Worker(share, report, lock) for share in shares]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)  # not for ever: a signal arrives between two calls
    except KeyboardInterrupt:
        for worker in workers:
            worker.interrupt()
        for worker in workers:
            worker.join()
        raise
    for worker in workers:
        if worker.error:
            raise worker.error
    return max(worker.status for worker in workers)


class _Worker(threading.Thread):
    """Supervises the process of one share."""

    def __init__(self, share: Share, report: Callable[[Receipt], None], lock: threading.Lock) -> None:
        super().__init__()
        self.share, self.report, self.lock = share, report, lock
        self.status = 1  # until the share is done
        self.error: BaseException | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted = False

    def run(self) -> None:
        try:
            self._supervise()
        except Exception as error:  # for the parent
            self.error = error

    def _supervise(self) -> None:
        deaths, left = 0, self.share.undone()
        while left and not self._interrupted:
            code = self._run_once(deaths)
            if code >= 0:  # it has said itself what is wrong
                self.status = code
                return
            now = self.share.undone()
            deaths = deaths + 1 if now == left else 1
            left = now
            log.warning("a process was killed by signal %d with %d units to do", -code, left)
            if deaths >= MAX_DEATHS:
                return
        self.status = int(left > 0)

    def _run_once(self, deaths: int) -> int:
        """After a death the process begins with another unit and does one by one: only the deadly one is left."""
        environment = {**os.environ, **self.share.environment}
        command = [sys.executable, *self.share.arguments, *(["--killed", str(deaths)] if deaths else [])]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            self._process = process
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    receipt = Receipt(**json.loads(line))
                except (ValueError, TypeError):  # half a line of a killed process
                    continue
                with self.lock:
                    self.report(receipt)
        return process.returncode

    def interrupt(self) -> None:
        """End the process."""
        self._interrupted = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
