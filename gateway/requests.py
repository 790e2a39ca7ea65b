"""What the three APIs do alike with a request: read its JSON within a limit, and let go when its client has gone."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from gateway.errors import GatewayError, Json

T = TypeVar("T")
_WAIT = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*\"?(\d+)\"?)?(?=$|[,;\s])")
LONGEST_WAIT = 60.0


async def read_json(request: Request, most: int) -> Json:
    """The body, a JSON object of at most `most` bytes. Raises GatewayError 413 and 400."""
    parts, size = [], 0
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large(most)
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise too_large(most)
    try:
        body = orjson.loads(b"".join(parts))
    except ValueError as error:
        position = f" at character {error.pos}" if isinstance(error, orjson.JSONDecodeError) else ""
        raise GatewayError(
            400, f"the body is not JSON{position}: send a JSON object in UTF-8", "invalid_json"
        ) from None
    if not isinstance(body, dict):
        raise GatewayError(400, "the body is not a JSON object", "invalid_json")
    return body


def too_large(most: int) -> GatewayError:
    return GatewayError(
        413, f"the body is larger than {most // 2**20:,} MiB: send several requests", "request_too_large"
    )


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
    """Seconds of `Prefer: wait` or `wait=N`, 1 to 60; None without it."""
    found = _WAIT.search(request.headers.get("prefer", "").lower())
    return None if found is None else min(LONGEST_WAIT, max(1.0, float(found[1] or LONGEST_WAIT)))
