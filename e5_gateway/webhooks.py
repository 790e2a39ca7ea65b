"""Webhooks as Replicate sends them: POST of the prediction at its events, signed, the last one tried again.

The signature is Standard Webhooks': HMAC-SHA256 of `id.timestamp.body`, with the key that
GET /v1/webhooks/default/secret gives, so that the clients' own validation accepts it. An answer that is not 2xx, or
none in ten seconds, counts as not delivered; redirects are not followed. `start` is sent once, `completed` up to seven
times in the minute after the end. What a restart of the gateway interrupts is sent again, under the same webhook-id.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
import sqlite3
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiohttp

from e5_gateway.metrics import Metrics
from e5_gateway.store import Row, Store

PAUSES = (1, 2, 4, 8, 16, 32)  # seconds between the tries of `completed`
SECONDS = 10.0
AT_ONCE, AT_ONCE_PER_HOST = 32, 4  # a receiver that never answers holds up its own alone
MOST_STARTS = 1_000  # that wait; beyond it `start` is left out. Ends are on disk, and cost their id here
NOTHING_YET: Row = dict.fromkeys(("completed_at", "output", "error", "metrics")) | {"logs": ""}
START, END = "start", "completed"
SECRET = "webhook"
Render = Callable[[Row], bytes]


class Webhooks:
    """`async with Webhooks(…)`: delivers what an earlier process left due. `render`: a row → the body sent."""

    def __init__(self, store: Store, metrics: Metrics, render: Render) -> None:
        self.store, self.metrics, self.render = store, metrics, render
        self._last: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        self.key = await self.store.secret(SECRET, new_key)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=SECONDS), cookie_jar=aiohttp.DummyCookieJar()
        )
        for name in await self.store.webhooks_due():
            self.finish(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._last.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def send_start(self, name: str, started_at: float) -> None:
        """One try, in the background; the end of the same prediction is sent after it."""

        async def once() -> None:
            await self._deliver(name, START, {"status": "processing", "started_at": started_at} | NOTHING_YET)

        if len(self._last) < MOST_STARTS:
            self._after(name, once)

    def finish(self, name: str) -> None:
        """Deliver the end of a prediction that is on disk, in the background."""

        async def until_delivered() -> None:
            for pause in (*PAUSES, None):
                with contextlib.suppress(sqlite3.Error):  # the same as not delivered
                    if await self._deliver(name, END, {}):
                        break
                if pause is None:
                    break
                await asyncio.sleep(pause)
            with contextlib.suppress(sqlite3.Error):  # then it is delivered again after the next start
                await self.store.update(name, webhook_due=0)

        self._after(name, until_delivered)

    def _after(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        before = self._last.get(name)

        async def run() -> None:
            if before is not None:
                await asyncio.wait([before])
            await work()

        task = self._last[name] = asyncio.create_task(run())
        task.add_done_callback(lambda done: self._last.get(name) is done and self._last.pop(name))

    async def _deliver(self, name: str, event: str, changes: Row) -> bool:
        """Whether that is done: taken, or forgotten meanwhile. A body is made when its turn has come, not before."""
        url = await self.store.webhook(name)
        if url is None:
            return True
        host = self._hosts.setdefault(urlsplit(url).netloc, asyncio.Semaphore(AT_ONCE_PER_HOST))
        async with host, self._slots:
            row = await self.store.get(name)
            return row is None or await self._post(url, event, row | changes)

    async def _post(self, url: str, event: str, row: Row) -> bool:
        body = self.render(row)
        delivery, stamp = f"msg_{row['id']}_{event}", str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery,
            "webhook-timestamp": stamp,
            "webhook-signature": signature(self.key, delivery, stamp, body),
        }
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                delivered = 200 <= response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            delivered = False
        self.metrics.webhooks.labels("delivered" if delivered else "failed").inc()
        return delivered


def new_key() -> str:
    """A signing key in the form of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def signature(key: str, delivery: str, stamp: str, body: bytes) -> str:
    """`v1,` and base64 of the HMAC; the key is `whsec_` and base64 of its bytes."""
    secret = base64.b64decode(key.removeprefix("whsec_"))
    digest = hmac.new(secret, f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
