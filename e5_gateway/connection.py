"""Limits on what a client may send before its request reaches the application, and on how slowly.

uvicorn with httptools limits neither the head of a request, nor the time that it takes, nor the number of connections.
Without these limits anyone who can connect could fill the memory, or use up the file descriptors, without a key.
"""

import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
"""Request line, headers and trailers of one request."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for earlier ones. One takes 3 kB of memory, but only 30 bytes to send."""
HEAD_SECONDS = 10.0
"""For a complete head, from the start of the connection or the end of the last response."""
BODY_SECONDS, BODY_BYTES = 30.0, 16 * 2**10
"""Until a body is complete, so many bytes must arrive in each such period."""
UNREAD_SECONDS, CLOSE_SECONDS = 60.0, 5.0
"""In which a client must read some of its response; the second while the connection is being closed."""
MAX_CONNECTIONS = 4_096
RESERVED_FILES = 128
"""File descriptors for everything but clients and the target: webhooks, the database, libraries."""


def max_connections(open_files: int) -> int:
    """Connections that a limit of open files allows: a request takes a second one, to the target."""
    return max(1, min(MAX_CONNECTIONS, (open_files - RESERVED_FILES) // 2))


class Connections:
    """All connections of a server, at most `limit`. `count` is called with the reason when one is cut off.

    A new connection beyond the limit takes the place of the one that has waited longest without sending a request.
    """

    def __init__(self, limit: int, count: Callable[[str], None]) -> None:
        self.limit, self.count = limit, count
        self.open: set[Connection] = set()
        self.waiting: dict[Connection, None] = {}
        """Those without a request, the longest waiting first."""

    def admit(self, connection: "Connection") -> bool:
        """Whether there is room for a new connection."""
        if len(self.open) >= self.limit:
            self.count("too_many")
            if not self.waiting:
                return False
            oldest = next(iter(self.waiting))
            self.remove(oldest)
            oldest.transport.abort()
        self.open.add(connection)
        self.waiting[connection] = None
        return True

    def remove(self, connection: "Connection") -> None:
        self.open.discard(connection)
        self.waiting.pop(connection, None)

    def check(self) -> None:
        """Cut off the clients that are too slow. To be called once a second."""
        now = time.monotonic()
        for connection in list(self.open):
            connection.check(now)


class Connection(HttpToolsProtocol):
    """One connection. Violations get 408 or 431, or the end of the connection if a response is under way."""

    def __init__(self, *arguments: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.all = connections
        self.refusal = 400
        self.keep_alive = True
        """What the head of the newest request says."""
        self.head_bytes = 0
        """Bytes of the request line, headers and trailers that the parser has passed on."""
        self.unparsed_bytes = 0
        """Bytes since the last end of a head or part of a body: of an incomplete head, or framing of chunks."""
        self.body_bytes = 0
        self.waiting_since = self.body_since = self.unsent_since = time.monotonic()
        self.unsent_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self.all.admit(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.unparsed_bytes += len(data)
        super().data_received(data)
        if self.unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.unparsed_bytes = self.body_bytes = 0
        self.body_since = time.monotonic()
        self.all.waiting.pop(self, None)
        super().on_headers_complete()
        # uvicorn would close after an early response, such as 401 or 413, and a client that still sends its body would
        # get a reset instead of the response. check() closes if the rest of the body takes too long.
        self.keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, True
        if len(self.pipeline) > MAX_PIPELINED:
            raise OverflowError  # ends the parser: data_received() calls send_400_response()

    def on_body(self, body: bytes) -> None:
        self.unparsed_bytes = 0
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.unparsed_bytes = 0
        super().on_message_complete()
        self.cycle.keep_alive = self.cycle.keep_alive and self.keep_alive
        if self.cycle.response_complete and not self.cycle.keep_alive:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self in self.all.open:
            self.waiting_since = time.monotonic()
            self.all.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser stops."""
        self.refuse(self.refusal)

    def refuse(self, status: int) -> None:
        """Answer, unless another response is under way, and close."""
        self.all.count({408: "slow", 431: "large_head"}.get(status, "malformed"))
        idle = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        if idle and not self.pipeline:
            body = b'{"detail":"%s"}' % REFUSALS[status]
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def check(self, now: float) -> None:
        """Cut off a client that sends its head, sends its body or reads its response too slowly."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self.unsent_bytes:
            self.unsent_bytes, self.unsent_since = unsent, now
        closing = self.transport.is_closing()
        if unsent and now - self.unsent_since > (CLOSE_SECONDS if closing else UNREAD_SECONDS):
            self.all.count("unread")
            self.transport.abort()
        elif closing:
            pass
        elif self.cycle is None or self.cycle.response_complete:
            if now - self.waiting_since > HEAD_SECONDS:
                self.refuse(408) if self.unparsed_bytes else self.transport.close()
        elif not self.cycle.more_body or self.flow.read_paused or self.body_bytes >= BODY_BYTES:
            self.body_bytes, self.body_since = 0, now
        elif now - self.body_since > BODY_SECONDS:
            self.refuse(408)

    def _count_head(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > MAX_HEAD_BYTES:
            self.refusal = 431
            raise OverflowError  # as above


REFUSALS = {
    400: b"this is not HTTP/1.1",
    408: b"the request arrives too slowly: send its headers within %d s, and its body without pauses" % HEAD_SECONDS,
    431: b"the request line and the headers are larger than %d KiB together" % (MAX_HEAD_BYTES // 2**10),
}
"""HTTP status → what the client reads."""
