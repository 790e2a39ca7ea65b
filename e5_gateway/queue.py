"""The queue in front of the servers: first come, first served, bounded in number and in bytes.

One event loop, no threads. A request gets its ticket when it is accepted, so an accepted request never finds the queue
full later. Its turn comes when a server has a free slot. Of several, the one takes it that is expected to finish it
first: bytes in flight × seconds that such a byte has taken there. So small requests don't wait behind a large one while
another server is idle, and a slow server gets fewer.
"""

import asyncio
import math
import time
from collections import deque
from typing import Generic, TypeVar

from e5_gateway.errors import QueueFull

RATE_SECONDS = 10.0
"""Period over which finished turns are counted, to compute Retry-After."""
MAX_RETRY_SECONDS = 60
HALF_LIFE_SECONDS = 5.0
"""A server that was slow counts as slow only half as much after this time without a request, so it is tried again."""
SMOOTHING = 0.2
"""Weight of the newest request in a server's pace."""


class Slots:
    """The slots of one server, which runs `running` requests with `bytes` bytes and takes up to `limit` while `open`.

    Bytes stand for tokens: the gateway has no tokenizer. `pace`: mean seconds of a request for each byte that was in
    flight at its start, its own included; None before the first one.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.open, self.running, self.bytes = limit, True, 0, 0
        self.pace: float | None = None
        self._measured = 0.0

    def measure(self, seconds: float, in_flight: int) -> None:
        """A request has succeeded after so many seconds, with so many bytes in flight at its start."""
        sample = seconds / max(in_flight, 1)
        self.pace = sample if self.pace is None else self.pace + SMOOTHING * (sample - self.pace)
        self._measured = time.monotonic()

    def expected_seconds(self, size: int, usual_pace: float) -> float:
        """Of a further request of `size` bytes. `usual_pace`: the fastest server's."""
        age = time.monotonic() - self._measured
        slower = 0.0 if self.pace is None else (self.pace - usual_pace) * math.pow(0.5, age / HALF_LIFE_SECONDS)
        return (self.bytes + size) * (usual_pace + slower)


S = TypeVar("S", bound=Slots)


class Queue(Generic[S]):
    """Requests for `servers`: at most `max_waiting` wait, and all together hold at most `max_bytes` bytes."""

    def __init__(self, servers: list[S], max_waiting: int, max_bytes: int) -> None:
        self.servers, self.max_waiting, self.max_bytes = servers, max_waiting, max_bytes
        self.bytes = 0
        self._waiting: deque[Ticket[S]] = deque()
        self._finished: deque[float] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(server.running for server in self.servers)

    @property
    def capacity(self) -> int:
        """Requests that can run or wait."""
        return self.max_waiting + sum(server.limit for server in self.servers)

    def enter(self, size: int, *, accepted: bool = False) -> "Ticket[S]":
        """Return a ticket for a request of `size` bytes. Raises QueueFull, but not if it was `accepted` before."""
        if not accepted:
            if len(self._waiting) >= self.max_waiting and self._choose(size) is None:
                raise QueueFull(f"{len(self._waiting):,} requests", self.retry_after())
            if self.bytes and self.bytes + size > self.max_bytes:
                raise QueueFull(f"{self.bytes / 2**20:,.0f} MiB of requests", self.retry_after())
        ticket = Ticket(self, size)
        self._waiting.append(ticket)
        self.bytes += size
        self.dispatch()
        return ticket

    def retry_after(self) -> int:
        """Whole seconds until about half of the waiting requests have had their turn, at the recent rate."""
        now = time.monotonic()
        while self._finished and self._finished[0] < now - RATE_SECONDS:
            self._finished.popleft()
        rate = len(self._finished) / RATE_SECONDS
        return min(MAX_RETRY_SECONDS, max(1, math.ceil(len(self._waiting) / 2 / rate))) if rate else 5

    def dispatch(self) -> None:
        """Give the waiting requests their turns, as far as servers have free slots."""
        while any(server.open and server.running < server.limit for server in self.servers):
            for ticket in self._waiting:
                if server := self._choose(ticket.size, ticket.avoid):
                    break
            else:
                return
            self._waiting.remove(ticket)
            if not ticket.turn.done():
                server.running += 1
                server.bytes += ticket.size
                ticket.started, ticket.in_flight = time.monotonic(), server.bytes
                ticket.turn.set_result(server)

    def fail_waiting(self, error: Exception) -> None:
        """Fail all waiting requests with `error`."""
        for ticket in self._waiting:
            if not ticket.turn.done():
                ticket.turn.set_exception(error)
        self._waiting.clear()

    def _choose(self, size: int, avoid: S | None = None) -> S | None:
        """The server for a request of `size` bytes; `avoid` only if no other one is open. None: all are full."""
        servers = [server for server in self.servers if server.open and server is not avoid]
        if not servers and avoid is not None and avoid.open:
            servers = [avoid]
        free = [server for server in servers if server.running < server.limit]
        if len(free) < 2:
            return free[0] if free else None
        usual = min((server.pace for server in free if server.pace is not None), default=1.0)
        return min(free, key=lambda server: (server.expected_seconds(size, usual), server.pace or 0.0))

    def _return(self, ticket: "Ticket[S]") -> None:
        """Take a request's slot, or its position if its turn has not come."""
        self.bytes -= ticket.size
        if (server := ticket.server) is not None:
            self._finished.append(time.monotonic())
            server.running -= 1
            server.bytes -= ticket.size
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.turn.cancel()
        self.dispatch()

    def _enter_first(self, ticket: "Ticket[S]") -> None:
        self._waiting.appendleft(ticket)
        self.bytes += ticket.size
        self.dispatch()


class Ticket(Generic[S]):
    """A request's position in the queue. `async with ticket as server:` waits for its turn and gives the slot back."""

    def __init__(self, queue: Queue[S], size: int) -> None:
        self.queue, self.size = queue, size
        self.avoid: S | None = None
        """The server that the last attempt failed on."""
        self.started, self.in_flight = 0.0, 0
        """Of its turn: the time, and the bytes in flight on the server."""
        self.turn: asyncio.Future[S] = asyncio.get_running_loop().create_future()
        self._left = False

    @property
    def server(self) -> S | None:
        """The server that the ticket's turn was on last; None before its turn."""
        done = self.turn.done() and not self.turn.cancelled() and self.turn.exception() is None
        return self.turn.result() if done else None

    async def __aenter__(self) -> S:
        try:
            return await self.turn
        except BaseException:
            self.leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def succeeded(self) -> None:
        """The request has succeeded: its time counts for the server's pace."""
        if self.server is not None and not self._left:
            self.server.measure(time.monotonic() - self.started, self.in_flight)

    def leave(self) -> None:
        """Give up the slot or the position. A second call does nothing."""
        if not self._left:
            self._left = True
            self.queue._return(self)

    def again(self) -> None:
        """After a turn: wait for another one in front of all others, on another server if one is open."""
        self.leave()
        self.avoid = self.server
        self.turn = asyncio.get_running_loop().create_future()
        self._left = False
        self.queue._enter_first(self)
