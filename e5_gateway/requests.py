"""What the three APIs do alike with a request: read its JSON within a limit, and let go when its client has gone."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from e5_gateway.errors import GatewayError, Json, QueueFull

T = TypeVar("T")
_WAIT = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*\"?(\d+)\"?)?(?=$|[,;\s])")
LONGEST_WAIT = 60.0
DEEPEST = 32  # levels of JSON; an input of the model has three


class Bodies:
    """The bytes of all bodies that are being read or answered: at most `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> None:
        """Raises GatewayError 429."""
        if self.held and self.held + size > self.most:
            raise QueueFull(f"{self.held / 2**20:,.0f} MiB of requests", 1)
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size


async def read_json(request: Request, most: int) -> Json:
    """The body, a JSON object of at most `most` bytes. Raises GatewayError 413, 429 and 400.

    Its bytes count as held (`request.state.held`) until e5_gateway/middleware.py has sent the answer.
    """
    parts, size = [], 0
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large(most)
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise too_large(most)
        request.app.state.open.bodies.take(len(part))
        request.state.held += len(part)
    content = b"".join(parts)
    del parts
    try:
        body = orjson.loads(content)
    except ValueError as error:
        position = f" at character {error.pos}" if isinstance(error, orjson.JSONDecodeError) else ""
        raise GatewayError(400, f"the body is not JSON{position}: send an object in UTF-8", "invalid_json") from None
    if not isinstance(body, dict):
        raise GatewayError(400, "the body is not a JSON object", "invalid_json")
    if content.count(b"[") + content.count(b"{") > DEEPEST:
        check_depth(body)
    return body


def check_depth(body: Json) -> None:
    """Refuse what is nested deeper than the libraries that write and check JSON can go. Raises GatewayError 400."""
    level: list[Any] = [body]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, list | dict)]
        if not level:
            return
    raise GatewayError(400, f"the body is nested deeper than {DEEPEST} levels", "invalid_json")


def too_large(most: int) -> GatewayError:
    message = f"the body is larger than {most // 2**20:,} MiB: send several requests"
    return GatewayError(413, message, "request_too_large")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body has been read: what comes next is the disconnection
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def prefer_wait(request: Request) -> float | None:
    """Seconds of `Prefer: wait` or `wait=N`, at most 60; None without it, and for 0."""
    found = _WAIT.search(request.headers.get("prefer", "").lower())
    return (min(LONGEST_WAIT, float(found[1] or LONGEST_WAIT)) or None) if found else None
