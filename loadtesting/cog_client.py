"""Asynchronous client of the Cog server for many concurrent requests, used by the load test and the benchmark.

Every request carries its own ID, because IDs that the server generates can collide (two in one clock tick). At capacity
the server answers 409; the client then retries after a short wait.
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
RETRY_SECONDS = 0.01
"""Wait after a 409. The server frees a slot a moment after it has sent the response."""

_numbers = itertools.count()


def new_id() -> str:
    """A request ID that is unique on this machine."""
    return f"load-{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class Reply:
    """A response, the seconds from the first attempt to the last byte, and the number of 409s before it."""

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
        """The prediction's status; empty if the response holds no prediction (422, 400)."""
        return str(self.body.get("status", "")) if self.http_status in (200, 202) else ""


class Client:
    """Keep-alive connections to one server, without a limit on their number."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, timeout: float = 300) -> AsyncIterator[Self]:
        """`timeout`: seconds per request; a slower one raises TimeoutError."""
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        client_timeout = aiohttp.ClientTimeout(total=timeout)
        async with aiohttp.ClientSession(connector=connector, timeout=client_timeout) as session:
            yield cls(url, session)

    async def predict(self, inputs: Json, name: str | None = None, *, put: bool = False, retry: bool = True) -> Reply:
        """POST /predictions, or PUT /predictions/{name}. With `retry`, repeat it while the server is at capacity."""
        name = name or new_id()
        body = json.dumps({"id": name, "input": inputs}).encode()
        path = f"/predictions/{name}" if put else "/predictions"
        return await self.send("PUT" if put else "POST", path, body, retry=retry)

    async def send(self, method: str, path: str, body: bytes = b"", *, retry: bool = False, **headers: str) -> Reply:
        """Send one request with a raw body. With `retry`, repeat it while the server answers 409."""
        started = time.perf_counter()
        for refused in itertools.count():
            async with self.session.request(method, self.url + path, data=body, headers=JSON | headers) as response:
                content = await response.read()
            if response.status != 409 or not retry:
                return Reply(response.status, content, time.perf_counter() - started, refused)
            await asyncio.sleep(RETRY_SECONDS)
        raise AssertionError("unreachable")

    async def health(self) -> str:
        """The status that /health-check reports."""
        return str((await self.send("GET", "/health-check")).body["status"])


def vectors(output: Json) -> Vectors:
    """Decode a prediction's output, in either format: float32 [N, D]."""
    if output["embeddings_base64"] is None:
        return np.array(output["embeddings"], dtype=np.float32)
    return np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in output["embeddings_base64"]])


@dataclass(frozen=True)
class LoadRun:
    """Replies to clients that each send the next request as soon as the last is answered, and the run's seconds."""

    replies: list[Reply]
    seconds: float


async def sustain_load(send: Callable[[], Awaitable[Reply]], clients: int, seconds: float) -> LoadRun:
    """Keep `clients` requests in flight for `seconds`, after one warm-up request each. Errors of `send` propagate."""
    replies: list[Reply] = []
    await asyncio.gather(*(send() for _ in range(clients)))
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            replies.append(await send())

    await asyncio.gather(*(client() for _ in range(clients)))
    return LoadRun(replies, time.perf_counter() - started)


def rate_and_latency(runs: Sequence[LoadRun]) -> Json:
    """Requests per second (median of the runs) and latency percentiles over all replies."""
    latencies = [reply.seconds for run in runs for reply in run.replies]
    return {
        "requests_per_second": median([len(run.replies) / run.seconds for run in runs]),
        "p50_milliseconds": percentile(latencies, 50) * 1e3,
        "p99_milliseconds": percentile(latencies, 99) * 1e3,
    }
