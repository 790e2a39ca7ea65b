"""The seconds that a device spends on some of its work.

On a GPU, work is asked for long before it is done: there the times are those of events on its stream, and reading them
waits for it. On a CPU the work is done when the call returns, and a clock will do.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time of what runs inside `running()`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """The work of the block counts, with the device's waiting in it for the host, if any."""
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
        """All of it up to now, once the device has done what it was asked for. Raises what went wrong there."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._seconds + sum(float(begin.elapsed_time(end)) for begin, end in self._events) / 1000
