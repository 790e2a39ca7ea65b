"""The life of a prediction of the Replicate API: accepted → starting → processing → succeeded, failed or canceled.

Accepted means on disk. From then on it is computed, whatever becomes of its client, of the target (it waits until that
is back) or of this process (it is taken up again at the next start).
"""

import asyncio
import base64
import contextlib
import itertools
import logging
import secrets
import sqlite3
import time
from dataclasses import dataclass, field
from typing import Self

import orjson

from e5_gateway.errors import GatewayError, Json, QueueFull, Unavailable, failure
from e5_gateway.metrics import Metrics
from e5_gateway.queue import Place
from e5_gateway.settings import Settings
from e5_gateway.store import FINAL, Row, Store
from e5_gateway.target import Target, new_id
from e5_gateway.webhooks import END, START, Webhooks

log = logging.getLogger("gateway")
ATTEMPTS = 3
"""So often a prediction may meet a server that goes away while it computes it; it may be what makes it go away."""
PAUSES = (0.5, 1.0, 4.0, 10.0)
"""Seconds between tries."""
PRUNE_SECONDS, STORE_SECONDS = 10.0, 2.0
CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")


@dataclass(frozen=True)
class Hook:
    """Where the events START and END of a prediction are told."""

    url: str
    events: tuple[str, ...]


@dataclass(eq=False)
class Prediction:
    """One that has not ended, or has just ended. `row` is what is stored; bytes in it are JSON."""

    row: Row
    task: asyncio.Task[None] | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    told: bool = False  # the webhook `start` was sent

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def final(self) -> bool:
        return self.row["status"] in FINAL


class Predictions:
    """`async with Predictions(…)`: takes up what was left unfinished; forgets what is old."""

    def __init__(self, target: Target, store: Store, webhooks: Webhooks, metrics: Metrics, settings: Settings) -> None:
        self.target, self.store, self.webhooks = target, store, webhooks
        self.metrics, self.settings = metrics, settings
        self._active: dict[str, Prediction] = {}
        self._closing = False
        self.ended = 0  # since this process began

    async def __aenter__(self) -> Self:
        for row in await self.store.unfinished():
            prediction = self._active[row["id"]] = Prediction(row | {"status": "starting", "started_at": None})
            prediction.task = asyncio.create_task(self._run(prediction, None))
        self._pruning = asyncio.create_task(self._prune())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End without a trace in the store: what is unfinished stays so, and is taken up at the next start."""
        self._closing = True
        tasks = [self._pruning, *(one.task for one in self._active.values() if one.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(
        self, model: str, version: str, inputs: bytes, base: str, hook: Hook | None, wait: float | None
    ) -> Row:
        """Accept one; its row as it was accepted once that is on disk, or, with `wait`, as it is after those seconds
        or at its end.

        `model`: owner/name. `inputs`: JSON. `base`: the gateway's address as this client knows it. Raises
        Unavailable and QueueFull, with nothing accepted.
        """
        await self.target.check()
        queue = self.target.queue
        most = queue.places + queue.slots
        # Those between two tries have no place in the queue, and count all the same.
        if len(self._active) >= most and sum(not one.final for one in self._active.values()) >= most:
            raise QueueFull(f"{most:,} predictions", queue.retry_after())
        place = queue.enter(len(inputs))
        row: Row = {
            "id": new_prediction_id(),
            "model": model,
            "version": version,
            "status": "starting",
            "created_at": time.time(),
            "input": inputs,
            "base": base,
            "webhook": hook.url if hook else None,
            "webhook_events": ",".join(hook.events) if hook else "",
            "webhook_due": int(hook is not None and END in hook.events),
            "size": len(inputs),
        }
        try:
            await self.store.insert(row)
        except BaseException as error:
            place.leave()
            if isinstance(error, sqlite3.Error):
                message = f"the prediction could not be stored: {error}"
                raise GatewayError(503, message, retry_after=10) from None
            raise
        prediction = Prediction(dict.fromkeys(("started_at", "completed_at", "output", "error", "metrics")) | row)
        prediction.row |= {"logs": "", "attempts": 0}
        accepted = dict(prediction.row)
        self._active[prediction.id] = prediction
        prediction.task = asyncio.create_task(self._run(prediction, place))
        if wait is None:
            return accepted
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):  # the latter: the gateway ends; it is on disk
            await asyncio.wait_for(prediction.done.wait(), wait)
        return prediction.row

    async def get(self, name: str) -> Row | None:
        active = self._active.get(name)
        return active.row if active else await self.store.get(name)

    async def page(self, before: tuple[float, str] | None, count: int) -> list[Row]:
        """The newest, or those older than a (created_at, id)."""
        rows = await self.store.page(before, count)
        newer = [self._active[row["id"]].row if row["id"] in self._active else row for row in rows]
        return [{key: new[key] for key in old} for old, new in zip(rows, newer, strict=True)]

    async def cancel(self, name: str) -> Row | None:
        """The prediction, which has ended now: canceled, or as it had ended before. None: unknown."""
        active = self._active.get(name)
        if active and not active.final and active.task:
            active.task.cancel()
            await asyncio.wait([active.task], timeout=STORE_SECONDS)  # until that is on disk, unless the disk is full
        return active.row if active else await self.store.get(name)

    async def _run(self, prediction: Prediction, place: Place | None) -> None:
        """`place`: in the queue; None for one that was accepted before and has none."""
        pauses = iter(PAUSES)
        try:
            while True:
                if place is None:
                    await self.target.until_ready()
                    place = self.target.queue.enter(prediction.row["size"], accepted=True)
                if await self._attempt(prediction, place):
                    return
                place = None
                await asyncio.sleep(next(pauses, PAUSES[-1]))
        except asyncio.CancelledError:
            if self._closing:
                raise
            await self._end(prediction, {"status": "canceled"})
        except Exception as error:
            log.error("bug", extra={"fields": {"prediction": prediction.id, "error": type(error).__name__}})
            await self._end(prediction, {"status": "failed", "error": "Prediction failed: the gateway has a bug"})

    async def _attempt(self, prediction: Prediction, place: Place) -> bool:
        """Whether it has ended; False: the target went away, to be tried again."""
        row = prediction.row
        try:
            async with place:
                if (identity := await self.target.known()).version != row["version"]:
                    gone = f"version {row['version']} is no longer served: now it is {identity.version}"
                    await self._end(prediction, {"status": "failed", "error": f"{gone} of {identity.model}"})
                    return True
                row |= {"status": "processing", "started_at": time.time()}
                if row["webhook"] and START in row["webhook_events"].split(",") and not prediction.told:
                    prediction.told = True
                    self.webhooks.send_start(prediction.id, row["started_at"])
                body = orjson.dumps({"id": new_id(), "input": orjson.Fragment(row["input"])})
                found = (await self.target.compute(body)).prediction()
            await self.target.check_answer(found, row["model"].partition("/")[2])
            if found["status"] == "failed" and not failure(found.get("error")).of_the_input:
                await self.target.ask(fresh=True)
                if not self.target.ready:
                    return await self._again(prediction, failure(found.get("error")).message, reached=True)
        except Unavailable as error:
            return await self._again(prediction, error.message, reached=error.reached)
        except GatewayError as error:
            if error.status in (429, 502):  # of a proxy between, or of a server that is being replaced
                return await self._again(prediction, error.message, reached=error.status == 502)
            await self._end(prediction, {"status": "failed", "error": error.message})
            return True
        await self._end(prediction, found)
        return True

    async def _again(self, prediction: Prediction, reason: str, *, reached: bool) -> bool:
        """False, to try again; only what may have been computed counts. True: enough, it has ended."""
        row = prediction.row
        row |= {"attempts": row["attempts"] + reached, "status": "starting", "started_at": None}
        if row["attempts"] < ATTEMPTS:
            if reached:
                with contextlib.suppress(sqlite3.Error):
                    await self.store.update(prediction.id, attempts=row["attempts"])
            return False
        error = f"the server gave no usable answer {ATTEMPTS} times; the last time: {reason}"
        await self._end(prediction, {"status": "failed", "error": error})
        return True

    async def _end(self, prediction: Prediction, found: Json) -> None:
        """Write down the end; tell who waits at once, and the webhook after the write."""
        row = prediction.row
        now = time.time()
        metrics = dict(found.get("metrics") or {}) | {"total_time": round(now - row["created_at"], 6)}
        output = orjson.dumps(found["output"]) if found["status"] == "succeeded" else None
        end = {
            "status": found["status"],
            "started_at": row["started_at"],
            "completed_at": now,
            "output": output,
            "error": failure(found["error"]).message if found.get("error") else None,
            "logs": str(found.get("logs") or ""),
            "metrics": orjson.dumps(metrics),
            "size": len(row["input"]) + len(output or b""),
        }
        row |= end
        prediction.done.set()
        self.ended += 1
        self.metrics.predictions.labels(found["status"]).inc()
        self.metrics.embedded("replicate", metrics)
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                await asyncio.shield(self.store.update(prediction.id, **end))
                break
            except sqlite3.Error as error:  # a full disk: until there is space it is found in memory
                log.error("not stored", extra={"fields": {"prediction": prediction.id, "error": str(error)}})
                await asyncio.sleep(pause)
        self._active.pop(prediction.id, None)
        if row["webhook_due"]:
            self.webhooks.finish(prediction.id)

    async def _prune(self) -> None:
        kept = self.settings
        while True:
            try:
                await self.store.prune(kept.keep_seconds, kept.keep_predictions, kept.keep_bytes)
            except sqlite3.Error as error:
                log.error("not pruned", extra={"fields": {"error": str(error)}})
            await asyncio.sleep(PRUNE_SECONDS)


def new_prediction_id() -> str:
    """128 random bits in Crockford's base 32: 26 characters, as Replicate's ids have."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").translate(CROCKFORD)
