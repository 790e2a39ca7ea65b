"""The Cog server that computes: its state, what it runs, and one prediction at a time of it.

The state is what its /health-check says. It is asked every few seconds, and at once when a request meets a server that
was not ready, so that requests go on as soon as it is back. What it runs is asked anew whenever it comes back.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import itertools
import logging
import math
import random
import secrets
import time
from dataclasses import dataclass
from typing import Self

import aiohttp
import orjson

from e5 import catalog
from e5_gateway.errors import GatewayError, Json, Unavailable, failure
from e5_gateway.queue import Queue
from e5_gateway.settings import Settings

log = logging.getLogger("gateway")
READY = ("READY", "BUSY")  # BUSY: at capacity, which is no fault
DOWN = "DOWN"
MEANING = {
    DOWN: "nothing answers at its address",
    "STARTING": "it is loading its weights",
    "SETUP_FAILED": "it could not load; its log says why",
    "UNHEALTHY": "it cannot compute any more and has to be started again",
    "DEFUNCT": "its worker has ended and has to be started again",
    "UNRESPONSIVE": "it takes connections and does not answer in time",
    "FOREIGN": "what answers there is not a Cog server of this package",
    "UNKNOWN": "it has not been asked yet",
}
ASK_SECONDS, ASK_SECONDS_UNREADY = 5.0, 0.5
CONNECT_SECONDS = 5.0
HEALTH_SECONDS, SILENT_SECONDS = 10.0, 30.0  # for one answer of /health-check; without an answer of any kind
FRESH_SECONDS = 0.2  # an answer of /health-check not older than this is not asked for again
AT_CAPACITY_SECONDS, LONGEST_CAPACITY_SECONDS = 0.01, 0.25
"""Pauses after a 409, doubled each time: coglet 0.23 frees a slot a moment after its answer has left."""
FINAL_WITHOUT_OUTPUT = ("failed", "canceled")
JSON_TYPE = {"Content-Type": "application/json"}
OUT_OF_FILES = "the gateway has as many connections as the system allows: raise `ulimit -n`, or send fewer at a time"
_numbers = itertools.count()
_run = secrets.token_hex(4)


def new_id() -> str:
    """An id for the target. Clients choose none: coglet makes a folder of that name, and its own ids collide."""
    return f"gw-{_run}-{next(_numbers)}"


@dataclass(frozen=True)
class Answer:
    """What the target answered: its HTTP status and its bytes."""

    status: int
    content: bytes

    def json(self) -> Json:
        """The body, a JSON object. Raises ValueError."""
        parsed = orjson.loads(self.content)
        if not isinstance(parsed, dict):
            raise ValueError("no JSON object")
        return parsed

    def prediction(self) -> Json:
        """A prediction that has ended, with `status`, and where it succeeded `output` and `metrics`.

        Raises GatewayError: 400 what the server's schema refuses, 429 as it came, 502 what no server of this package
        answers.
        """
        try:
            found = self.json()
        except ValueError:
            found = {}
        if self.status in (400, 422):
            raise GatewayError(400, f"the server refused it: {str(found.get('detail') or found.get('error'))[:500]}")
        if self.status == 429:
            raise GatewayError(429, "the server has too much to do", "rate_limit_exceeded", retry_after=1)
        good = found.get("status") == "succeeded"
        complete = isinstance(found.get("output"), dict) and isinstance(found.get("metrics"), dict)
        ended = good or found.get("status") in FINAL_WITHOUT_OUTPUT
        if self.status != 200 or not ended or (good and not complete):
            message = f"the server's answer (HTTP {self.status}) is no prediction of this model"
            raise GatewayError(502, message, "bad_gateway")
        return found


@dataclass(frozen=True)
class Identity:
    """What the target runs. `facts` is the catalogue's entry, if it has one. `version` changes with name and schema.

    `boot`: when the server's setup began; another means that it was started again, perhaps with another model.
    """

    model: str
    dimensions: int
    schema: Json
    coglet: str
    facts: catalog.Model | None
    version: str
    since: float
    boot: str


class Target:
    """`async with Target(settings) as target`. One event loop."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.target.rstrip("/")
        self.state = "UNKNOWN"
        self.identity: Identity | None = None
        self.queue = Queue(settings.concurrency, settings.queue, settings.queue_bytes)
        self._model = settings.model
        self._timeout = settings.timeout
        self._asked = self._heard = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[Answer]] = set()
        self._ready, self._unready = asyncio.Event(), asyncio.Event()

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

    def unavailable(self, *, reached: bool = False) -> Unavailable:
        return Unavailable(self.state, MEANING.get(self.state, "see the log of the server"), reached=reached)

    async def check(self) -> None:
        """Return when the target can compute. Raises Unavailable with its state."""
        if not self.ready:
            await self.ask()
            if not self.ready:
                raise self.unavailable()

    async def known(self) -> Identity:
        """What the target runs. Raises Unavailable."""
        await self.check()
        if self.identity is None:
            raise self.unavailable()
        return self.identity

    async def until_ready(self) -> None:
        """Wait, for as long as it takes."""
        await self._ready.wait()

    async def predict(self, body: bytes, model: str) -> Json:
        """One prediction of POST /predictions by this model, in its turn; it has ended.

        Raises QueueFull, what compute() and Answer.prediction() raise, and Unavailable where it is another model's.
        """
        await self.check()
        async with self.queue.enter(len(body)):
            found = (await self.compute(body)).prediction()
        await self.check_answer(found, model)
        return found

    async def check_answer(self, prediction: Json, model: str) -> None:
        """Raise Unavailable when the server broke, or another model computed it: the server was replaced."""
        why = failure(prediction.get("error"))
        if prediction["status"] == "failed" and why.of_the_server:
            await self.ask(fresh=True)
            state = "CRASHED" if self.ready else self.state  # /health-check may tell it a moment later
            raise Unavailable(state, why.message, reached=not why.message.startswith("Failed to send"))
        if self._model is None and (prediction.get("metrics") or {}).get("model", model) != model:
            self.identity = None
            await self.ask(fresh=True)
            raise Unavailable("REPLACED", "another model answers at its address now: see /v1/models", 1)

    async def compute(self, body: bytes, method: str = "POST", path: str = "/predictions", **headers: str) -> Answer:
        """One prediction of a caller that has its turn; the answer as it came. Cancelled here, it is cancelled there.

        Raises Unavailable when the target goes away, and GatewayError 504 after the time limit.
        """
        end, pause = time.monotonic() + self._timeout, AT_CAPACITY_SECONDS
        while True:
            try:
                answer = await self._send_while_alive(method, path, body, headers)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if _no_more_files(error):
                    raise Unavailable("OUT OF FILES", OUT_OF_FILES, 1) from None
                await self.ask(fresh=True)
                raise self._broken(reached=False) from None
            except TimeoutError:
                raise GatewayError(504, f"no answer for {self._timeout:.0f} s: send fewer texts", "timeout") from None
            except (aiohttp.ClientError, OSError):
                await self.ask(fresh=True)
                raise self._broken(reached=True) from None
            if answer.status == 409 and b"capacity" in answer.content and time.monotonic() < end:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # others use the same server
                pause = min(2 * pause, LONGEST_CAPACITY_SECONDS)
                continue
            if answer.status == 503:
                await self.ask(fresh=True)
                raise Unavailable("STARTING", MEANING["STARTING"]) if self.ready else self.unavailable()
            return answer

    async def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request as it is. Raises aiohttp.ClientError, OSError, TimeoutError."""
        async with self._session.request(method, self.url + path, data=body, headers=JSON_TYPE | headers) as response:
            answer = Answer(response.status, await response.read())
            self._heard = time.monotonic()
            return answer

    async def ask(self, *, fresh: bool = False) -> None:
        """Bring `state` up to date; all who ask at the same time share one question.

        `fresh`: a question that begins now, for one that is under way may have had its answer before.
        """
        if self._asking is not None and not self._asking.done():
            await asyncio.shield(self._asking)
            if not fresh:
                return
        if self._asking is None or self._asking.done():
            if not fresh and time.monotonic() - self._asked < FRESH_SECONDS:
                return
            self._asking = asyncio.create_task(self._ask())
        await asyncio.shield(self._asking)

    async def _send_while_alive(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """send(), given up when the target has not answered anything for long."""
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

    async def _ask(self) -> None:
        before, silent = self.state, time.monotonic() - self._heard > SILENT_SECONDS
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                state = await self._look()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            state = before if _no_more_files(error) else DOWN
        except TimeoutError:  # a busy server may be slow
            state = "UNRESPONSIVE" if silent or self.identity is None else before
        except (aiohttp.ClientError, OSError):
            state = DOWN
        except Exception as error:  # whatever else answers there
            state = "FOREIGN"
            if before != state:
                log.warning("not a server of this model", extra={"fields": {"error": type(error).__name__}})
        self._asked = time.monotonic()
        self.state = state
        if state in READY:
            self._ready.set()
            self._unready.clear()
            return
        self._ready.clear()
        self._unready.set()
        if before in READY:
            self.queue.fail_waiting(self.unavailable())
        if silent:
            for sending in set(self._sending):
                sending.cancel()

    async def _look(self) -> str:
        """The state; the identity is brought up to date when the server is another than before."""
        answer = await self.send("GET", "/health-check")
        health = answer.json()
        state = str(health["status"])
        if state in READY:
            boot = str((health.get("setup") or {}).get("started_at"))
            if self.identity is None or self.identity.boot != boot:
                self.identity = await self._identify(str((health.get("version") or {}).get("coglet", "")), boot)
        return state

    async def _identify(self, coglet: str, boot: str) -> Identity:
        """Which model it is, from one word that it embeds, and its schema."""
        schema = (await self.send("GET", "/openapi.json")).json()
        pause = AT_CAPACITY_SECONDS
        probe = {"document": "?", "encoding_format": "base64"}
        while (answer := await self._probe(probe)).status == 409:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_CAPACITY_SECONDS)
        found = answer.prediction()
        model = self._model or str(found["metrics"].get("model") or "e5")
        dimensions = len(base64.b64decode(found["output"]["embeddings_base64"][0])) // 4
        digest = hashlib.sha256(model.encode() + orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).hexdigest()
        facts = catalog.get(model) if model in catalog.names() else None
        since = self.identity.since if self.identity and self.identity.version == digest else time.time()
        return Identity(model, dimensions, schema, coglet, facts, digest, since, boot)

    async def _probe(self, inputs: Json) -> Answer:
        return await self.send("POST", "/predictions", orjson.dumps({"id": new_id(), "input": inputs}))

    async def _watch(self) -> None:
        while True:
            await self.ask()
            if self.ready:
                # Not wait_for(), which in Python 3.11 loses a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_SECONDS):
                        await self._unready.wait()
            else:
                await asyncio.sleep(ASK_SECONDS_UNREADY)


def _no_more_files(error: BaseException) -> bool:
    """Whether this process has as many files open as it may: nothing is wrong with the target then."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
