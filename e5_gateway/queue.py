"""The queue in front of the target: first come, first served, bounded in number and in bytes.

One event loop, no threads. A request gets its ticket when it is accepted, so an accepted request never finds the queue
full later. The ticket's turn comes when the target has a free slot.
"""

import asyncio
import math
import time
from collections import deque
from typing import Self

from e5_gateway.errors import QueueFull

RATE_SECONDS = 10.0
"""Period over which finished turns are counted, to compute Retry-After."""
MAX_RETRY_SECONDS = 60


class Queue:
    """`slots` requests run at a time, at most `max_waiting` wait; together they hold at most `max_bytes` bytes."""

    def __init__(self, slots: int, max_waiting: int, max_bytes: int) -> None:
        self.slots, self.max_waiting, self.max_bytes = slots, max_waiting, max_bytes
        self.running = 0
        self.bytes = 0
        self._waiting: deque[Ticket] = deque()
        self._finished: deque[float] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, size: int, *, accepted: bool = False) -> "Ticket":
        """Return a ticket for a request of `size` bytes. Raises QueueFull, but not if it was `accepted` before."""
        free = self.running < self.slots and not self._waiting
        if not accepted:
            if not free and len(self._waiting) >= self.max_waiting:
                raise QueueFull(f"{len(self._waiting):,} requests", self.retry_after())
            if self.bytes and self.bytes + size > self.max_bytes:
                raise QueueFull(f"{self.bytes / 2**20:,.0f} MiB of requests", self.retry_after())
        ticket = Ticket(self, size)
        self.bytes += size
        if free:
            self.running += 1
            ticket.turn.set_result(None)
        else:
            self._waiting.append(ticket)
        return ticket

    def retry_after(self) -> int:
        """Whole seconds until about half of the waiting requests have had their turn, at the recent rate."""
        now = time.monotonic()
        while self._finished and self._finished[0] < now - RATE_SECONDS:
            self._finished.popleft()
        rate = len(self._finished) / RATE_SECONDS
        return min(MAX_RETRY_SECONDS, max(1, math.ceil(len(self._waiting) / 2 / rate))) if rate else 5

    def fail_waiting(self, error: Exception) -> None:
        """Fail all waiting requests with `error`."""
        for ticket in self._waiting:
            if not ticket.turn.done():
                ticket.turn.set_exception(error)
        self._waiting.clear()

    def _leave(self, ticket: "Ticket") -> None:
        self.bytes -= ticket.size
        if ticket.turn.done() and not ticket.turn.cancelled() and ticket.turn.exception() is None:
            self._finished.append(time.monotonic())
            self.running -= 1
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.turn.cancel()
        while self._waiting and self.running < self.slots:
            following = self._waiting.popleft()
            if not following.turn.done():
                self.running += 1
                following.turn.set_result(None)


class Ticket:
    """A request's position in the queue. `async with ticket:` waits for its turn and gives the slot back."""

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

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Give up the slot or the position. A second call does nothing."""
        if not self._left:
            self._left = True
            self.queue._leave(self)
