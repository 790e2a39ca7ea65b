"""A prediction of the Replicate API: accepted → starting → processing → succeeded, failed, canceled or aborted.

A prediction that reaches its deadline is canceled if it is running, and aborted if it waits in the queue or for the
target. A user's cancel is always canceled. (https://replicate.com/docs/topics/predictions/lifecycle)

An accepted prediction is on disk. It runs even if its client leaves, if a target goes away (it runs on another one, or
waits until one is back) or if this process ends (it continues at the next start).
"""

import asyncio
import contextlib
import itertools
import sqlite3
import time
from dataclasses import dataclass, field, replace
from typing import Any, Self

import orjson

from e5_cog.failures import parse_failure
from e5_gateway.errors import GatewayError, Json, QueueFull, Unavailable
from e5_gateway.logs import log
from e5_gateway.metrics import Metrics
from e5_gateway.queue import Ticket
from e5_gateway.settings import GatewaySettings
from e5_gateway.store import Prediction, PredictionSummary, Store, new_public_id
from e5_gateway.target import Identity, Target, new_id
from e5_gateway.targets import MAX_ATTEMPTS, Targets
from e5_gateway.uploads import Uploads
from e5_gateway.webhooks import END, START, Webhook, Webhooks

PAUSES = (0.5, 1.0, 4.0, 10.0)
"""Seconds between attempts; the last one repeats."""
PRUNE_SECONDS, STORE_SECONDS = 10.0, 2.0


@dataclass(eq=False)
class ActivePrediction:
    """A prediction in this process, until its end is on disk."""

    prediction: Prediction
    task: asyncio.Task[None] | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    start_sent: bool = False
    expired: bool = False  # its deadline has been reached
    with_files: bool | None = None  # None: accepted by an earlier process, so not known yet

    def change(self, **columns: Any) -> None:
        self.prediction = replace(self.prediction, **columns)


class Predictions:
    """`async with Predictions(…)`: continues unfinished predictions of an earlier process and deletes old ones."""

    def __init__(
        self,
        targets: Targets,
        store: Store,
        uploads: Uploads,
        webhooks: Webhooks,
        metrics: Metrics,
        settings: GatewaySettings,
    ) -> None:
        self.targets, self.store, self.uploads, self.webhooks = targets, store, uploads, webhooks
        self.metrics, self.settings = metrics, settings
        self._active: dict[str, ActivePrediction] = {}
        self._closing = False
        self.ended = 0  # since this process started

    async def __aenter__(self) -> Self:
        for prediction in await self.store.unfinished():
            self._start(replace(prediction, status="starting", started_at=None), None)
        self._pruning = asyncio.create_task(self._prune())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop without a change to the store: unfinished predictions continue at the next start."""
        self._closing = True
        tasks = [self._pruning, *(active.task for active in self._active.values() if active.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(
        self,
        model: str,
        version: str,
        inputs: bytes,
        base: str,
        webhook: Webhook | None,
        wait: float | None,
        lifetime: float | None = None,
        *,
        with_files: bool = False,
    ) -> Prediction:
        """Accept a prediction. Return it once it is on disk, or with `wait`, at its end or after so many seconds.

        `model`: owner/name. `inputs`: JSON. `base`: the gateway's address as the client knows it. `lifetime`: seconds
        from now to its deadline. Raises Unavailable, QueueFull and GatewayError 503, and then has accepted nothing.
        """
        await self.targets.require_ready()
        queue = self.targets.queue
        # Predictions between two attempts have no ticket, but count.
        if len(self._active) >= queue.capacity:
            running = sum(not active.prediction.final for active in self._active.values())
            if running >= queue.capacity:
                raise QueueFull(f"{queue.capacity:,} predictions", queue.retry_after())
        # A prediction with files waits for a turn of Uploads before it enters the queue, where it would block a slot.
        ticket = None if with_files else queue.enter(len(inputs))
        now = time.time()
        prediction = Prediction(
            id=new_public_id(),
            model=model,
            version=version,
            status="starting",
            created_at=now,
            deadline=None if lifetime is None else now + lifetime,
            base=base,
            input=inputs,
            size=len(inputs),
            webhook=webhook.url if webhook else None,
            webhook_events=webhook.events if webhook else (),
            webhook_due=webhook is not None and END in webhook.events,
        )
        try:
            await self.store.insert(prediction)
        except BaseException as error:
            if ticket is not None:
                ticket.leave()
            if isinstance(error, sqlite3.Error):
                raise GatewayError(503, f"the prediction could not be stored: {error}", retry_after=10) from None
            raise
        active = self._start(prediction, ticket, with_files)
        if wait is None:
            return prediction
        # CancelledError: the gateway is shutting down, and the prediction is on disk.
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(active.done.wait(), wait)
        return active.prediction

    async def get(self, prediction_id: str) -> Prediction | None:
        active = self._active.get(prediction_id)
        return active.prediction if active else await self.store.get(prediction_id)

    async def page(self, before: tuple[float, str] | None, count: int) -> list[PredictionSummary]:
        """The newest `count` predictions, or the newest of those older than a (created_at, id)."""
        stored = await self.store.page(before, count)
        return [self._active[old.id].prediction if old.id in self._active else old for old in stored]

    async def cancel(self, prediction_id: str) -> Prediction | None:
        """Cancel a prediction unless it has ended, and return it. None: unknown."""
        active = self._active.get(prediction_id)
        if active and not active.prediction.final and active.task:
            active.task.cancel()
            # Until the end is on disk, or for STORE_SECONDS if the disk is full.
            await asyncio.wait([active.task], timeout=STORE_SECONDS)
        return active.prediction if active else await self.store.get(prediction_id)

    def _start(
        self, prediction: Prediction, ticket: Ticket[Target] | None, with_files: bool | None = None
    ) -> ActivePrediction:
        """Run a prediction in the background. `ticket` is None if it has files, or an earlier process accepted it."""
        active = self._active[prediction.id] = ActivePrediction(prediction, with_files=with_files)
        task = active.task = asyncio.create_task(self._run(active, ticket))
        if prediction.deadline is not None:
            delay = prediction.deadline - time.time()
            timer = asyncio.get_running_loop().call_later(delay, self._expire, active)
            task.add_done_callback(lambda _: timer.cancel())
        return active

    def _expire(self, active: ActivePrediction) -> None:
        """End a prediction at its deadline."""
        active.expired = True
        if not active.prediction.final and active.task:
            active.task.cancel()

    async def _run(self, active: ActivePrediction, ticket: Ticket[Target] | None) -> None:
        try:
            if ticket is None:
                await self.targets.wait_until_ready()
            if active.with_files is None and (identity := self.targets.identity) is not None:
                active.with_files = self.uploads.has_files(orjson.loads(active.prediction.input), identity)
            async with self.uploads.turn(wait=True) if active.with_files else contextlib.nullcontext():
                await self._attempts(active, ticket)
        except asyncio.CancelledError:
            if self._closing:
                raise
            aborted = active.expired and active.prediction.status == "starting"
            await self._end(active, {"status": "aborted" if aborted else "canceled"})
        except Exception as error:
            log.error("bug", extra={"fields": {"prediction": active.prediction.id, "error": type(error).__name__}})
            await self._fail(active, "Prediction failed: the gateway has a bug")

    async def _attempts(self, active: ActivePrediction, ticket: Ticket[Target] | None) -> None:
        """Until one has ended the prediction."""
        pauses, moves = iter(PAUSES), 0
        while True:
            if ticket is None:
                await self.targets.wait_until_ready()
                ticket = self.targets.queue.enter(active.prediction.size, accepted=True)
            if await self._attempt(active, ticket):
                return
            if moves < MAX_ATTEMPTS - 1 and ticket.server and self.targets.others_ready(ticket.server):
                ticket.again()
                moves += 1
            else:
                ticket, moves = None, 0
                await asyncio.sleep(next(pauses, PAUSES[-1]))

    async def _attempt(self, active: ActivePrediction, ticket: Ticket[Target]) -> bool:
        """Run the prediction on a server. True: it has ended. False: the server went away, so try again."""
        version, model = active.prediction.version, active.prediction.model.partition("/")[2]
        try:
            async with ticket as target:
                deadline = active.prediction.deadline
                if deadline is not None and deadline <= time.time():  # reached while no gateway ran
                    await self._end(active, {"status": "aborted"})
                    return True
                identity = await self.targets.require_identity()
                if identity.version != version and not self.targets.all_known:
                    return await self._retry(active, f"version {version} is not served yet", reached=False)
                if identity.version != version:
                    served = f"now it is {identity.version} of {identity.model}"
                    await self._fail(active, f"version {version} is no longer served: {served}")
                    return True
                started_at = time.time()
                active.change(status="processing", started_at=started_at)
                if START in active.prediction.webhook_events and not active.start_sent:
                    active.start_sent = True
                    self.webhooks.send_start(active.prediction.id, started_at)
                body = await self._body(active, identity)
                result = await target.predict(body, model)
                if result["status"] == "succeeded":
                    ticket.succeeded()
        except Unavailable as error:
            return await self._retry(active, error.message, reached=error.reached)
        except GatewayError as error:
            if error.status in (429, 502):  # from a proxy in between, or from a server that is being replaced
                return await self._retry(active, error.message, reached=error.status == 502)
            await self._fail(active, error.message)
            return True
        await self._end(active, result)
        return True

    async def _body(self, active: ActivePrediction, identity: Identity) -> bytes:
        """The request for the server, with the content of the inputs' files."""
        inputs = active.prediction.input
        if active.with_files is False:  # not for None: the server must never get the URL of a file
            return orjson.dumps({"id": new_id(), "input": orjson.Fragment(inputs)})
        filled = await self.uploads.inlined(orjson.loads(inputs), identity)
        return await asyncio.to_thread(orjson.dumps, {"id": new_id(), "input": filled})

    async def _retry(self, active: ActivePrediction, reason: str, *, reached: bool) -> bool:
        """False: try again. True: it has failed for good. Only attempts that `reached` the target count."""
        attempts = active.prediction.attempts + reached
        active.change(attempts=attempts, status="starting", started_at=None)
        if attempts < MAX_ATTEMPTS:
            if reached:
                with contextlib.suppress(sqlite3.Error):
                    await self.store.update(active.prediction.id, attempts=attempts)
            return False
        await self._fail(active, f"the server gave no usable answer {MAX_ATTEMPTS} times; the last time: {reason}")
        return True

    async def _fail(self, active: ActivePrediction, error: str) -> None:
        await self._end(active, {"status": "failed", "error": error})

    async def _end(self, active: ActivePrediction, result: Json) -> None:
        """Wake the waiting requests, store the end, then send the webhook. `result`: the target's prediction."""
        prediction = active.prediction
        now = time.time()
        metrics = dict(result.get("metrics") or {}) | {"total_time": round(now - prediction.created_at, 6)}
        output = orjson.dumps(result["output"]) if result["status"] == "succeeded" else None
        columns: dict[str, Any] = {
            "status": result["status"],
            "started_at": prediction.started_at,
            "completed_at": now,
            "output": output,
            "error": parse_failure(result["error"]).message if result.get("error") else None,
            "logs": str(result.get("logs") or ""),
            "metrics": orjson.dumps(metrics),
            "size": len(prediction.input) + len(output or b""),
        }
        active.change(**columns)
        active.done.set()
        self.ended += 1
        self.metrics.predictions.labels(result["status"]).inc()
        self.metrics.count_embedded("replicate", metrics)
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                await asyncio.shield(self.store.update(prediction.id, **columns))
                break
            except sqlite3.Error as error:  # a full disk: until there is space, get() finds it in memory
                log.error("not stored", extra={"fields": {"prediction": prediction.id, "error": str(error)}})
                await asyncio.sleep(pause)
        self._active.pop(prediction.id, None)
        if prediction.webhook_due:
            self.webhooks.send_end(prediction.id)

    async def _prune(self) -> None:
        settings = self.settings
        while True:
            try:
                await self.store.prune(settings.keep_seconds, settings.keep_predictions, settings.keep_bytes)
                await self.store.delete_expired_files(time.time())
            except sqlite3.Error as error:
                log.error("not pruned", extra={"fields": {"error": str(error)}})
            await asyncio.sleep(PRUNE_SECONDS)
