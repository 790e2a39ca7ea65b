"""The Cog server that computes: its state, what it runs, and one prediction at a time of it.

The state is what its /health-check says. It is asked every few seconds, and at once when a request meets a server that
was not ready, so that requests go on as soon as it is back. What it runs is asked anew whenever it comes back.
"""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import math
import secrets
import time
from dataclasses import dataclass
from typing import Self

import aiohttp
import orjson

from e5 import catalog
from gateway.errors import GatewayError, Json, Unavailable
from gateway.queue import Queue
from gateway.settings import Settings

READY = ("READY", "BUSY")  # BUSY: at capacity, which is no fault
DOWN = "DOWN"
MEANING = {
    DOWN: "nothing answers at its address",
    "STARTING": "it is loading its weights",
    "SETUP_FAILED": "it could not load; its log says why",
    "UNHEALTHY": "it cannot compute any more and has to be started again",
    "DEFUNCT": "its worker has ended and has to be started again",
    "UNRESPONSIVE": "it takes connections and does not answer",
    "FOREIGN": "what answers there is not a Cog server of this package",
    "UNKNOWN": "it has not been asked yet",
}
ASK_SECONDS, ASK_SECONDS_UNREADY = 5.0, 0.5
HEALTH_SECONDS, SILENT_SECONDS = 10.0, 30.0  # for one answer of /health-check; without an answer of any kind
FRESH_SECONDS = 0.2  # an answer of /health-check not older than this is not asked for again
AT_CAPACITY_SECONDS = 0.01  # coglet 0.23 frees a slot a moment after its answer has left
JSON_TYPE = {"Content-Type": "application/json"}
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
        parsed: Json = orjson.loads(self.content)
        return parsed


@dataclass(frozen=True)
class Identity:
    """What the target runs. `facts` is the catalogue's entry, if it has one. `version` changes with name and schema."""

    model: str
    dimensions: int
    schema: Json
    coglet: str
    facts: catalog.Model | None
    version: str
    since: float


class Target:
    """`async with Target(settings) as target`. One event loop."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.target.rstrip("/")
        self.state, self.identity = "UNKNOWN", None  # type: str, Identity | None
        self.queue = Queue(settings.concurrency, settings.queue, settings.queue_bytes)
        self._model = settings.model
        self._timeout = settings.timeout
        self._asked = self._heard = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout, connect=5),
            auto_decompress=False,
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

    def unavailable(self) -> Unavailable:
        return Unavailable(self.state, MEANING.get(self.state, "see the log of the server"))

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
        while not self.ready:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), ASK_SECONDS)

    async def predict(self, body: bytes) -> Answer:
        """One prediction of POST /predictions, in its turn. Raises QueueFull and what compute() raises."""
        await self.check()
        async with self.queue.enter(len(body)):
            return await self.compute(body)

    async def compute(self, body: bytes, method: str = "POST", path: str = "/predictions", **headers: str) -> Answer:
        """One prediction of a caller that has its turn; the answer as it came. Cancelled here, it is cancelled there.

        Raises Unavailable when the target goes away, and GatewayError 504 after the time limit.
        """
        end = time.monotonic() + self._timeout
        while True:
            try:
                answer = await self.send(method, path, body, **headers)
            except TimeoutError:
                raise GatewayError(504, f"no answer for {self._timeout:.0f} s: send fewer texts", "timeout") from None
            except (aiohttp.ClientError, OSError):
                await self.ask(fresh=True)
                if self.ready:  # the connection broke, not the server
                    raise Unavailable("UNREACHABLE", "the connection to it broke: send the request again", 1) from None
                raise self.unavailable() from None
            if answer.status == 409 and b"capacity" in answer.content and time.monotonic() < end:
                await asyncio.sleep(AT_CAPACITY_SECONDS)  # others use the same server
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
        """Bring `state` up to date; all who ask at the same time share one question."""
        if self._asking is None or self._asking.done():
            if not fresh and time.monotonic() - self._asked < FRESH_SECONDS:
                return
            self._asking = asyncio.create_task(self._ask())
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        before = self.state
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                answer = await self.send("GET", "/health-check")
            health = answer.json() if answer.status == 200 else {}
            state = str(health.get("status") or "UNKNOWN")
            if state in READY and (before not in READY or self.identity is None):
                self.identity = await self._identify(str(health.get("version", {}).get("coglet", "")))
        except TimeoutError:  # a busy server's loop may be slow
            state = before if time.monotonic() - self._heard < SILENT_SECONDS else "UNRESPONSIVE"
        except (aiohttp.ClientError, OSError):
            state = DOWN
        except (ValueError, KeyError, TypeError, IndexError):
            state = "FOREIGN"
        self._asked = time.monotonic()
        self.state = state
        if state in READY:
            self._changed.set()
        elif before in READY:
            self.queue.fail_waiting(self.unavailable())

    async def _identify(self, coglet: str) -> Identity:
        """Which model it is, from one word that it embeds, and its schema."""
        schema = (await self.send("GET", "/openapi.json")).json()
        probe = {"id": new_id(), "input": {"document": "?", "encoding_format": "base64"}}
        while (answer := await self.send("POST", "/predictions", orjson.dumps(probe))).status == 409:
            await asyncio.sleep(AT_CAPACITY_SECONDS)
        found = answer.json()
        model = self._model or str(found["metrics"].get("model") or "e5")
        dimensions = len(base64.b64decode(found["output"]["embeddings_base64"][0])) // 4
        digest = hashlib.sha256(model.encode() + orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).hexdigest()
        facts = catalog.get(model) if model in catalog.names() else None
        since = self.identity.since if self.identity and self.identity.version == digest else time.time()
        return Identity(model, dimensions, schema, coglet, facts, digest, since)

    async def _watch(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(ASK_SECONDS if self.ready else ASK_SECONDS_UNREADY)
