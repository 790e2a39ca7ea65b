"""A client of the running server for many requests at once: the load test's and the benchmark's. One event loop.

Every request brings its own id, because ids that the server gives can collide (two of one clock tick). At capacity the
server answers 409; a request that was refused so asks again after a short wait, as a client of a server should.
"""

import asyncio
import base64
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import numpy as np

from benchmarks.report import median, percentile
from e5.vectors import Vectors

Json = dict[str, Any]
JSON = {"Content-Type": "application/json"}
WAIT_SECONDS = 0.01
"""After a 409. The server frees a slot a moment after its answer has left."""

_numbers = itertools.count()


def new_id() -> str:
    """An id that no other request of this machine has."""
    return f"load-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class Reply:
    """What came back, how long it took from first sending to last byte, and how often a 409 came before."""

    http_status: int
    content: bytes
    seconds: float
    refused: int

    @property
    def body(self) -> Json:
        parsed: Json = json.loads(self.content)
        return parsed

    @property
    def status(self) -> str:
        """The prediction's status; empty where the answer is no prediction's (422, 400)."""
        return str(self.body.get("status", "")) if self.http_status in (200, 202) else ""


class Client:
    """Connections to one server, kept alive, as many as there are requests."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, timeout: float = 300) -> AsyncIterator[Self]:
        """`timeout`: seconds for each request; what takes longer raises TimeoutError."""
        connections = aiohttp.TCPConnector(limit=0, force_close=False)
        limit = aiohttp.ClientTimeout(total=timeout)
        async with aiohttp.ClientSession(connector=connections, timeout=limit) as session:
            yield cls(url, session)

    async def predict(self, inputs: Json, name: str | None = None, *, put: bool = False, retry: bool = True) -> Reply:
        """POST /predictions, or PUT /predictions/{name}; sent again while the server is at capacity, if `retry`."""
        name = name or new_id()
        body = json.dumps({"id": name, "input": inputs}).encode()
        path = f"/predictions/{name}" if put else "/predictions"
        return await self.send("PUT" if put else "POST", path, body, retry=retry)

    async def send(self, method: str, path: str, body: bytes = b"", *, retry: bool = False, **headers: str) -> Reply:
        """One request as it is."""
        started = time.perf_counter()
        for refused in itertools.count():
            async with self.session.request(method, self.url + path, data=body, headers=JSON | headers) as response:
                content = await response.read()
            if response.status != 409 or not retry:
                return Reply(response.status, content, time.perf_counter() - started, refused)
            await asyncio.sleep(WAIT_SECONDS)
        raise AssertionError("unreachable")

    async def health(self) -> str:
        """What /health-check says."""
        return str((await self.send("GET", "/health-check")).body["status"])


def vectors(output: Json) -> Vectors:
    """float32 [N, D] out of an answer's output, in either format."""
    if output["embeddings_base64"] is None:
        return np.array(output["embeddings"], dtype=np.float32)
    return np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in output["embeddings_base64"]])


@dataclass(frozen=True)
class Spell:
    """Answers to clients that ask again as soon as they are answered, and the seconds that it went on."""

    replies: list[Reply]
    seconds: float


async def keep_busy(ask: Callable[[], Awaitable[Reply]], clients: int, seconds: float) -> Spell:
    """So many clients for so long; after one request each, which does not count. What `ask` raises ends it."""
    replies: list[Reply] = []
    await asyncio.gather(*(ask() for _ in range(clients)))
    started = time.perf_counter()

    async def work() -> None:
        while time.perf_counter() - started < seconds:
            replies.append(await ask())

    await asyncio.gather(*(work() for _ in range(clients)))
    return Spell(replies, time.perf_counter() - started)


def rate_and_waits(spells: Sequence[Spell]) -> Json:
    """Requests a second, the median of the spells; and percentiles of all waits."""
    waits = [reply.seconds for spell in spells for reply in spell.replies]
    return {
        "requests_per_second": median([len(spell.replies) / spell.seconds for spell in spells]),
        "p50_milliseconds": percentile(waits, 50) * 1e3,
        "p99_milliseconds": percentile(waits, 99) * 1e3,
    }
