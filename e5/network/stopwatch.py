"""Device time of selected work.

GPU work is asynchronous: events on the stream time it, and reading the total waits for the GPU. CPU work is done when
the call returns, so the host's clock times it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time of all `running()` blocks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block, including device idle time spent waiting for the host."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        begin = self._event()
        yield
        self._events.append((begin, self._event()))

    def _event(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> float:
        """Wait for the device → the total in seconds. Raises the device's error if its work failed."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._seconds + sum(float(begin.elapsed_time(end)) for begin, end in self._events) / 1000
