"""Webhooks as Replicate sends them: a signed POST of the prediction at its start and at its end.

The signature is that of Standard Webhooks: HMAC-SHA256 of `id.timestamp.body` with the key of
GET /v1/webhooks/default/secret, so the clients' own validation accepts it. A delivery fails without a 2xx within ten
seconds; redirects are not followed. `start` is sent once, `completed` up to seven times in the minute after the end. A
delivery that a restart interrupts is sent again with the same webhook-id. `e5_gateway.destinations` says where they may
go.
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
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiohttp

from e5_gateway.destinations import Destinations
from e5_gateway.metrics import Metrics
from e5_gateway.store import Prediction, Store

PAUSES = (1, 2, 4, 8, 16, 32)
"""Seconds between the deliveries of `completed`."""
TIMEOUT_SECONDS = 10.0
MAX_DELIVERIES, MAX_DELIVERIES_PER_RECEIVER = 32, 4
"""At a time. A receiver (host and port) that never answers delays only its own webhooks."""
MAX_STARTS = 1_000
"""Waiting predictions beyond which `start` is skipped. Ends are on disk and cost only an id in memory."""
START, END = "start", "completed"
SECRET = "webhook"


@dataclass(frozen=True)
class Webhook:
    """A client's webhook: its URL and the events it gets, of START and END."""

    url: str
    events: tuple[str, ...]


class Webhooks:
    """`async with Webhooks(…)`: also delivers the webhooks that an earlier process left. `render` writes the body."""

    def __init__(
        self, store: Store, metrics: Metrics, destinations: Destinations, render: Callable[[Prediction], bytes]
    ) -> None:
        self.store, self.metrics, self.destinations, self.render = store, metrics, destinations, render
        self._last: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_DELIVERIES)
        self._receivers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        self.key = await self.store.secret(SECRET, new_key)
        self._sessions = contextlib.AsyncExitStack()
        self._session = await self._sessions.enter_async_context(self.destinations.sessions(TIMEOUT_SECONDS))
        for prediction_id in await self.store.webhooks_due():
            self.send_end(prediction_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._last.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sessions.aclose()

    def send_start(self, prediction_id: str, started_at: float) -> None:
        """Deliver START once, in the background, and before the END of the same prediction."""

        def as_started(prediction: Prediction) -> Prediction:
            """The stored prediction may have ended before its turn came."""
            prediction = replace(prediction, status="processing", started_at=started_at, completed_at=None)
            return replace(prediction, output=None, error=None, metrics=None, logs="")

        async def once() -> None:
            await self._deliver(prediction_id, START, as_started)

        if len(self._last) < MAX_STARTS:
            self._after_last(prediction_id, once)

    def send_end(self, prediction_id: str) -> None:
        """Deliver END in the background. The ended prediction must be on disk."""

        async def until_delivered() -> None:
            for pause in (*PAUSES, None):
                with contextlib.suppress(sqlite3.Error):  # counts as a failed delivery
                    if await self._deliver(prediction_id, END):
                        break
                if pause is None:
                    break
                await asyncio.sleep(pause)
            with contextlib.suppress(sqlite3.Error):  # it is then delivered again after the next start
                await self.store.update(prediction_id, webhook_due=False)

        self._after_last(prediction_id, until_delivered)

    def _after_last(self, prediction_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start `work` after the previous delivery of the same prediction."""
        previous = self._last.get(prediction_id)

        async def run() -> None:
            if previous is not None:
                await asyncio.wait([previous])
            await work()

        task = self._last[prediction_id] = asyncio.create_task(run())
        task.add_done_callback(lambda done: self._last.get(prediction_id) is done and self._last.pop(prediction_id))

    async def _deliver(
        self, prediction_id: str, event: str, change: Callable[[Prediction], Prediction] | None = None
    ) -> bool:
        """Whether it was delivered, or the prediction was deleted. The body is written when a slot is free."""
        url = await self.store.webhook(prediction_id)
        if url is None:
            return True
        parts = urlsplit(url)
        receiver = self._receivers.setdefault(
            f"{parts.hostname}:{parts.port}", asyncio.Semaphore(MAX_DELIVERIES_PER_RECEIVER)
        )
        async with receiver, self._slots:
            prediction = await self.store.get(prediction_id)
            if prediction is None:
                return True
            return await self._post(url, event, change(prediction) if change else prediction)

    async def _post(self, url: str, event: str, prediction: Prediction) -> bool:
        body = self.render(prediction)
        delivery_id, timestamp = f"msg_{prediction.id}_{event}", str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self.key, delivery_id, timestamp, body),
        }
        await self.destinations.resolve_targets()
        try:
            async with self._session(url).post(url, data=body, headers=headers, allow_redirects=False) as response:
                delivered = 200 <= response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            delivered = False
        self.metrics.webhooks.labels("delivered" if delivered else "failed").inc()
        return delivered


def new_key() -> str:
    """A random signing key in the format of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def signature(key: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """`v1,` and the HMAC in base64. The key is `whsec_` and its bytes in base64."""
    secret = base64.b64decode(key.removeprefix("whsec_"))
    digest = hmac.new(secret, f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
