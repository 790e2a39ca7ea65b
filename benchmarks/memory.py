"""The host memory of this process, from Linux: RssAnon excludes mapped files, VmHWM includes them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
INTERVAL_SECONDS = 0.002
"""The sampling interval: shorter peaks may be missed."""


@dataclass
class HostMemory:
    """Bytes at the peak and at the end of a block; None if the system does not report them."""

    peak: int | None = None
    end: int | None = None


@contextmanager
def host_memory() -> Iterator[HostMemory]:
    """Measure a block. The result is complete once the block has ended."""
    stop, result = threading.Event(), HostMemory()
    peak = anonymous_bytes()

    def sample() -> None:
        nonlocal peak
        while peak is not None and not stop.wait(INTERVAL_SECONDS):
            peak = max(peak, anonymous_bytes() or 0)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield result
    stop.set()
    thread.join()
    result.end = anonymous_bytes()
    result.peak = None if peak is None or result.end is None else max(peak, result.end)


def anonymous_bytes() -> int | None:
    """RssAnon of this process; None if the system has no /proc/self/status."""
    return _status("RssAnon")


def peak_resident_bytes() -> int | None:
    """VmHWM: the most memory that this process has had resident so far, with mapped files. None as above."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        lines = STATUS.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
