"""Who may ask the target now, and who waits: first come, first served, bounded in number and in bytes.

One event loop, no threads. A place is taken when a request is accepted, so that what was accepted never finds the
queue full later; it becomes a turn when a slot of the target is free.
"""

import asyncio
import math
import time
from collections import deque
from types import TracebackType
from typing import Self

from e5_gateway.errors import QueueFull

RATE_SECONDS = 10.0  # over which finished turns are counted, to tell when to try again
LONGEST_RETRY = 60


class Queue:
    """`slots` turns at a time; at most `places` requests wait for one. All together have at most `most_bytes` bytes."""

    def __init__(self, slots: int, places: int, most_bytes: int) -> None:
        self.slots, self.places, self.most_bytes = slots, places, most_bytes
        self.running = 0
        self.bytes = 0
        self._waiting: deque[Place] = deque()
        self._finished: deque[float] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, size: int, *, accepted: bool = False) -> "Place":
        """A place for a request of `size` bytes. `accepted`: it was let in before, and is not refused now.

        Raises QueueFull.
        """
        free = self.running < self.slots and not self._waiting
        if not accepted:
            if not free and len(self._waiting) >= self.places:
                raise QueueFull(f"{len(self._waiting):,} requests", self.retry_after())
            if self.bytes and self.bytes + size > self.most_bytes:
                raise QueueFull(f"{self.bytes / 2**20:,.0f} MiB of requests", self.retry_after())
        place = Place(self, size)
        self.bytes += size
        if free:
            self.running += 1
            place.turn.set_result(None)
        else:
            self._waiting.append(place)
        return place

    def retry_after(self) -> int:
        """Whole seconds until about half of those who wait will have had their turn, by the rate of late."""
        now = time.monotonic()
        while self._finished and self._finished[0] < now - RATE_SECONDS:
            self._finished.popleft()
        rate = len(self._finished) / RATE_SECONDS
        return min(LONGEST_RETRY, max(1, math.ceil(len(self._waiting) / 2 / rate))) if rate else 5

    def fail_waiting(self, error: Exception) -> None:
        """Tell all who wait that there will be no turn."""
        for place in self._waiting:
            if not place.turn.done():
                place.turn.set_exception(error)
        self._waiting.clear()

    def _leave(self, place: "Place") -> None:
        self.bytes -= place.size
        if place.turn.done() and not place.turn.cancelled() and place.turn.exception() is None:
            self._finished.append(time.monotonic())
            self.running -= 1
        elif place in self._waiting:
            self._waiting.remove(place)
            place.turn.cancel()
        while self._waiting and self.running < self.slots:
            following = self._waiting.popleft()
            if not following.turn.done():
                self.running += 1
                following.turn.set_result(None)


class Place:
    """`async with place:` waits for the turn and gives it back. Leaving without it gives up the place."""

    def __init__(self, queue: Queue, size: int) -> None:
        self.queue, self.size = queue, size
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = False

    async def __aenter__(self) -> Self:
        try:
            await self.turn
        except BaseException:
            self.leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Give up the turn or the place; a second time does nothing."""
        if not self._left:
            self._left = True
            self.queue._leave(self)
