"""One Cog server that runs the model: its state, its identity, and its predictions. `targets.py` has all of them.

The state is the status of its /health-check. The gateway refreshes it every second, and at once for a request that
meets a server that was not ready, so that requests continue as soon as it is back. The identity (what it serves) is
read again each time the server comes back.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import logging
import math
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import aiohttp
import numpy as np
import orjson

from e5 import catalog
from e5.vectors import Vectors
from e5_cog.failures import parse_failure
from e5_gateway.errors import GatewayError, Json, Unavailable
from e5_gateway.logs import log
from e5_gateway.queue import Slots
from e5_gateway.settings import GatewaySettings

READY = ("READY", "BUSY")  # BUSY: at capacity
DOWN = "DOWN"
MEANING = {
    DOWN: "nothing answers at its address",
    "STARTING": "it is loading its weights",
    "SETUP_FAILED": "it could not load; its log says why",
    "UNHEALTHY": "it cannot compute any more and has to be started again",
    "DEFUNCT": "its worker has ended and has to be started again",
    "UNRESPONSIVE": "it accepts connections but does not respond in time",
    "FOREIGN": "the server at its address is not one of this package, or an older one",
    "UNKNOWN": "it has not been asked yet",
}
REFRESH_SECONDS, REFRESH_SECONDS_UNREADY = 1.0, 0.5
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 2.0
"""Time limit of one /health-check."""
IDENTIFY_SECONDS = 30.0
"""Time limit of the first prediction, which may wait for others, or be slow on a CPU."""
SILENT_SECONDS = 5.0
"""After this long without any response, a server whose /health-check times out counts as unresponsive."""
FRESH_SECONDS = 0.2
"""A state younger than this is not refreshed."""
MIN_CAPACITY_PAUSE, MAX_CAPACITY_PAUSE = 0.01, 0.25
"""Seconds before a retry after a 409, doubled each time: coglet 0.23 frees a slot a moment after it has answered."""
FINAL_WITHOUT_OUTPUT = ("failed", "canceled")
PROBE = "The gateway compares the servers by their vectors of this sentence."
MIN_COSINE = 0.999
"""Of the servers' vectors of PROBE. The same weights on other devices differ by less, other weights by more."""
JSON_TYPE = {"Content-Type": "application/json"}
OUT_OF_FILES = "the gateway has as many connections as the system allows: raise `ulimit -n`, or send fewer at a time"
OWN_ID = "gw-"


def new_id() -> str:
    """A prediction id for the target, of 128 random bits: who knows an id may read and cancel the prediction.

    Clients of the other APIs may not choose it, because coglet creates a folder of that name; coglet's own ids collide.
    """
    return OWN_ID + secrets.token_hex(16)


@dataclass(frozen=True)
class TargetResponse:
    """HTTP status and body of the target's response."""

    status: int
    content: bytes

    def json(self) -> Json:
        """The body, a JSON object. Raises ValueError."""
        parsed = orjson.loads(self.content)
        if not isinstance(parsed, dict):
            raise ValueError("no JSON object")
        return parsed

    def prediction(self) -> Json:
        """The body as a prediction that has ended: `status`, and if it succeeded, `output` and `metrics`.

        Raises GatewayError: 400 if the server's schema refuses the inputs, 429 if the server does, 502 if the response
        is not a prediction of this package.
        """
        try:
            body = self.json()
        except ValueError:
            body = {}
        if self.status in (400, 422):
            raise GatewayError(400, f"the server refused it: {str(body.get('detail') or body.get('error'))[:500]}")
        if self.status == 429:
            raise GatewayError(429, "the server has too much to do", "rate_limit_exceeded", retry_after=1)
        if body.get("status") == "succeeded":
            valid = isinstance(body.get("output"), dict) and isinstance(body.get("metrics"), dict)
        else:
            valid = body.get("status") in FINAL_WITHOUT_OUTPUT
        if self.status != 200 or not valid:
            message = f"the server's answer (HTTP {self.status}) is no prediction of this model"
            raise GatewayError(502, message, "bad_gateway")
        return body


@dataclass(frozen=True, eq=False)
class Identity:
    """The model that a target runs.

    `schema`: its OpenAPI schema. `version`: SHA-256 of model and schema. `first_seen`: Unix time of that version.
    `setup_started_at`: start of the server's setup; it changes with a restart, maybe with another model. `dtype`: that
    the model computes in. `max_tokens`: that it reads of a text. `vector`: that of PROBE, float32 [D].
    """

    model: str
    vector: Vectors
    schema: Json
    coglet: str
    catalog_entry: catalog.Model | None
    version: str
    first_seen: float
    setup_started_at: str
    dtype: str
    max_tokens: int

    @property
    def dimensions(self) -> int:
        return self.vector.size

    def difference(self, other: "Identity") -> str:
        """What `other` serves instead, such as "dtype float16 instead of bfloat16"; "" if it is the same."""
        for name in ("model", "dtype", "max_tokens", "dimensions"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(other, name)} instead of {getattr(self, name)}"
        if self.version != other.version:
            return "another schema: another version of predict.py"
        cosine = float(self.vector @ other.vector / np.linalg.norm(self.vector) / np.linalg.norm(other.vector))
        return "" if cosine >= MIN_COSINE else f"other weights: vectors of the same text have the cosine {cosine:.4f}"


class Target(Slots):
    """`async with Target(url, settings, on_change) as target`. One event loop. `on_change`: called after each refresh.

    `difference`: from what the other targets serve, or "".
    """

    def __init__(self, url: str, settings: GatewaySettings, on_change: Callable[[], None]) -> None:
        super().__init__(settings.concurrency)
        self.open = False
        self.url = url.rstrip("/")
        self.state = "UNKNOWN"
        self.identity: Identity | None = None
        self.difference = ""
        self._on_change = on_change
        self._model = settings.model
        self._timeout = settings.timeout
        self._refreshed = self._last_response = -math.inf
        self._refreshing: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[TargetResponse]] = set()
        self._unready = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout, connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        await self._session.close()

    @property
    def ready(self) -> bool:
        return self.state in READY

    @property
    def _silent(self) -> bool:
        return time.monotonic() - self._last_response > SILENT_SECONDS

    def unavailable(self, *, reached: bool = False) -> Unavailable:
        return Unavailable(self.state, MEANING.get(self.state, "see the log of the server"), reached=reached)

    async def predict(self, body: bytes, model: str) -> Json:
        """POST /predictions, for a caller whose turn has come. Returns the prediction, which has ended.

        `model`: the one that it is meant for. Raises the errors of compute() and TargetResponse.prediction(), and
        Unavailable if the server broke or was replaced by one with another model.
        """
        prediction = (await self.compute(body)).prediction()
        await self.check(prediction)
        if self._model is None and (prediction.get("metrics") or {}).get("model", model) != model:
            self.identity = None
            await self.refresh(force=True)
            raise Unavailable("REPLACED", "another model answers at its address now: see /v1/models", 1)
        return prediction

    async def check(self, prediction: Json) -> None:
        """Raise Unavailable if the server broke while it ran this prediction."""
        reason = parse_failure(prediction.get("error"))
        if prediction.get("status") == "failed" and not reason.input_fault:
            await self.refresh(force=True)
            if reason.server_fault or not self.ready:
                state = "CRASHED" if self.ready else self.state  # /health-check may notice a moment later
                raise Unavailable(state, reason.message, reached=not reason.message.startswith("Failed to send"))

    async def compute(
        self, body: bytes, method: str = "POST", path: str = "/predictions", **headers: str
    ) -> TargetResponse:
        """Send one prediction, for a caller whose turn has come. Cancelling this call cancels the prediction.

        Raises Unavailable if the target goes away, and GatewayError 504 after the time limit.
        """
        end, pause = time.monotonic() + self._timeout, MIN_CAPACITY_PAUSE
        while True:
            try:
                response = await self._send_while_alive(method, path, body, headers)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if _is_out_of_files(error):
                    raise Unavailable("OUT OF FILES", OUT_OF_FILES, 1) from None
                await self.refresh(force=True)
                raise self._broken(reached=False) from None
            except TimeoutError:
                raise GatewayError(504, f"no answer for {self._timeout:.0f} s: send fewer texts", "timeout") from None
            except (aiohttp.ClientError, OSError):
                await self.refresh(force=True)
                raise self._broken(reached=True) from None
            if response.status == 409 and b"capacity" in response.content and time.monotonic() < end:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # other clients use the same server
                pause = min(2 * pause, MAX_CAPACITY_PAUSE)
                continue
            if response.status == 503:
                await self.refresh(force=True)
                raise Unavailable("STARTING", MEANING["STARTING"]) if self.ready else self.unavailable()
            return response

    async def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> TargetResponse:
        """Send one request without queue or retry. Raises aiohttp.ClientError, OSError, TimeoutError."""
        async with self._session.request(method, self.url + path, data=body, headers=JSON_TYPE | headers) as response:
            content = await response.read()
            self._last_response = time.monotonic()
            return TargetResponse(response.status, content)

    async def refresh(self, *, force: bool = False) -> None:
        """Refresh `state`; concurrent callers share one /health-check.

        `force`: with a /health-check that starts now. One in flight may have had its answer before.
        """
        if self._refreshing is not None and not self._refreshing.done():
            await asyncio.shield(self._refreshing)
            if not force:
                return
        if self._refreshing is None or self._refreshing.done():
            if not force and time.monotonic() - self._refreshed < FRESH_SECONDS:
                return
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _send_while_alive(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> TargetResponse:
        """send(), but _refresh() cancels it if the server has been silent for SILENT_SECONDS. Raises Unavailable."""
        sending = asyncio.create_task(self.send(method, path, body, **headers))
        self._sending.add(sending)
        try:
            return await sending
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise self.unavailable(reached=True) from None
        finally:
            self._sending.discard(sending)

    def _broken(self, *, reached: bool) -> Unavailable:
        if not self.ready:
            return self.unavailable(reached=reached)
        return Unavailable("UNREACHABLE", "the connection to it broke: send the request again", 1, reached=reached)

    async def _refresh(self) -> None:
        before = self.state
        try:
            state = await self._read_state()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            state = before if _is_out_of_files(error) else DOWN
        except TimeoutError:  # a busy server may be slow
            state = "UNRESPONSIVE" if self._silent or self.identity is None else before
        except (aiohttp.ClientError, OSError):
            state = DOWN
        except Exception as error:  # it is some other server
            state = "FOREIGN"
            if before != state:
                log.warning("not a server of this model", extra={"fields": {"error": type(error).__name__}})
        self._refreshed = time.monotonic()
        self.state = state
        if state != before:
            log.log(
                logging.INFO if state in READY else logging.WARNING,
                "target",
                extra={"fields": {"target": self.url, "state": state, "before": before}},
            )
        self._on_change()
        if state in READY:
            self._unready.clear()
            return
        self._unready.set()
        if self._silent:
            for sending in set(self._sending):
                sending.cancel()

    async def _read_state(self) -> str:
        """GET /health-check; also reads the identity if the server was restarted."""
        async with asyncio.timeout(HEALTH_SECONDS):
            health = (await self.send("GET", "/health-check")).json()
        state = str(health["status"])
        if state in READY:
            setup_started_at = str((health.get("setup") or {}).get("started_at"))
            if self.identity is None or self.identity.setup_started_at != setup_started_at:
                coglet = str((health.get("version") or {}).get("coglet", ""))
                try:
                    async with asyncio.timeout(IDENTIFY_SECONDS):
                        self.identity = await self._identify(coglet, setup_started_at)
                except TimeoutError:
                    return "STARTING"
        return state

    async def _identify(self, coglet: str, setup_started_at: str) -> Identity:
        """Read the schema, and embed PROBE to learn what the server serves."""
        schema = (await self.send("GET", "/openapi.json")).json()
        pause = MIN_CAPACITY_PAUSE
        while (response := await self._probe()).status == 409:
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_CAPACITY_PAUSE)
        prediction = response.prediction()
        metrics = prediction["metrics"]
        model = self._model or str(metrics.get("model") or "e5")
        vector = np.frombuffer(base64.b64decode(prediction["output"]["embeddings_base64"][0]), "<f4")
        if not np.linalg.norm(vector) > 0:  # NaN as well
            raise ValueError("the model is broken: a vector is zero or not a number")
        version = hashlib.sha256(model.encode() + orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).hexdigest()
        entry = catalog.get(model) if model in catalog.names() else None
        dtype, max_tokens = str(metrics["dtype"]), int(metrics["max_tokens"])
        return Identity(model, vector, schema, coglet, entry, version, time.time(), setup_started_at, dtype, max_tokens)

    async def _probe(self) -> TargetResponse:
        inputs = {"document": PROBE, "encoding_format": "base64"}
        return await self.send("POST", "/predictions", orjson.dumps({"id": new_id(), "input": inputs}))

    async def _watch(self) -> None:
        while True:
            await self.refresh()
            if self.ready:
                # Not wait_for(): in Python 3.11 it loses a cancellation that coincides with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._unready.wait()
            else:
                await asyncio.sleep(REFRESH_SECONDS_UNREADY)


def _is_out_of_files(error: BaseException) -> bool:
    """Whether this process, not the target, is the cause: it has reached its limit of open files."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
