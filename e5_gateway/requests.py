"""Request bodies and disconnects, for all APIs: JSON within limits of size, memory, values and depth."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from e5_gateway.errors import GatewayError, Json, QueueFull

T = TypeVar("T")
MAX_DEPTH = 32
"""Nesting levels of a JSON body; an input of the model has three."""
MAX_VALUES = 100_000
"""Values in a JSON body. 64 MiB of `[],` would take 2 GiB and ten seconds to parse; 100,000 texts are 50 requests."""


class BodyBudget:
    """Memory for the bodies of all requests in progress: at most `max_bytes` together.

    Middleware opens one share per request and read_json() acquires from it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used = max_bytes, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """One request's share: yields acquire(size), which raises QueueFull. The end of the block releases it all."""
        acquired = 0

        def acquire(size: int) -> None:
            nonlocal acquired
            if self.used and self.used + size > self.max_bytes:
                raise QueueFull(f"{self.used / 2**20:,.0f} MiB of requests", 1)
            self.used += size
            acquired += size

        try:
            yield acquire
        finally:
            self.used -= acquired


class ValueCounter:
    """Counts the values of a JSON text that arrives in parts, without parsing it: what would be a huge tree is refused
    before it is built.

    Exact up to the first error in the JSON; a parser stops there.
    """

    def __init__(self) -> None:
        self.values = 1
        """An upper bound: commas and brackets outside of strings, and one."""
        self._in_string = False
        self._escape = b""
        """A backslash at the end of the last part, that belongs to the next one."""

    def feed(self, part: bytes) -> None:
        part = self._escape + part
        unescaped = part.rstrip(b"\\")
        self._escape = b"\\" * ((len(part) - len(unescaped)) % 2)
        pieces = unescaped.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        self.values += sum(map(outside.count, (b",", b"[", b"{")))


async def read_json(request: Request, max_bytes: int) -> Json:
    """Read the body, a JSON object of at most `max_bytes` bytes. Raises GatewayError 413, 429 and 400.

    Acquires its bytes from the request's share of the BodyBudget.
    """
    parts, size = [], 0
    counter = ValueCounter()
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise _too_large(max_bytes)
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        request.state.acquire_body(len(part))
        counter.feed(part)
        if counter.values > MAX_VALUES:
            cure = "send texts, not token ids, and fewer of them at a time"
            raise GatewayError(413, f"the body has more than {MAX_VALUES:,} values: {cure}", "request_too_large")
    content = b"".join(parts)
    del parts
    try:
        body = orjson.loads(content)
    except ValueError as error:
        position = f" at character {error.pos}" if isinstance(error, orjson.JSONDecodeError) else ""
        raise GatewayError(400, f"the body is not JSON{position}: send an object in UTF-8", "invalid_json") from None
    if not isinstance(body, dict):
        raise GatewayError(400, "the body is not a JSON object", "invalid_json")
    if counter.values > MAX_DEPTH:
        _check_depth(body)
    await asyncio.sleep(0)  # parsing and writing 32 MiB take a tenth of a second each: others may go in between
    return body


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects first, cancel it and raise ClientDisconnect.

    Call it after the body has been read: the next message of the client is then the disconnect.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


def _check_depth(body: Json) -> None:
    """Refuse JSON that is too deep for the libraries that write and validate it. Raises GatewayError 400."""
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [value for values in children for value in values if isinstance(value, list | dict)]
        if not level:
            return
    raise GatewayError(400, f"the body is nested deeper than {MAX_DEPTH} levels", "invalid_json")


def _too_large(max_bytes: int) -> GatewayError:
    message = f"the body is larger than {max_bytes // 2**20:,} MiB: send several requests"
    return GatewayError(413, message, "request_too_large")
