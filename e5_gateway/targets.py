"""The Cog servers behind the gateway: one queue, and another try elsewhere when one of them breaks.

All of them are to serve the same: model, dtype, schema and weights. If they don't, the largest group gets the requests,
and the others none. Of equal groups, the one that has been serving goes on; at the start, the first in the list.
"""

import asyncio
import operator
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, Self, TypeVar

from e5.errors import SettingsError
from e5_gateway.errors import GatewayError, Json, Unavailable
from e5_gateway.logs import log
from e5_gateway.queue import Queue, Ticket
from e5_gateway.settings import GatewaySettings, read_targets
from e5_gateway.target import READY, Identity, Target

MAX_ATTEMPTS = 3
"""Servers that may break while they run a request. The request itself may be the cause."""
RETIRE_SECONDS = 0.1
T = TypeVar("T")


class Targets:
    """`async with Targets(settings) as targets`. One event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.identity: Identity | None = None
        """What the servers serve. None: no server has been ready yet."""
        self._settings = settings
        self._targets = [Target(url, settings, self._update) for url in settings.targets]
        self.queue = Queue(self._targets, settings.max_waiting, settings.max_waiting_bytes)
        self._ready = asyncio.Event()
        self._compared: list[Identity | None] = []
        self._background: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Self:
        for target in self._targets:
            await target.__aenter__()
        if self._settings.targets_file is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._read_again)
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(target.__aexit__(*error) for target in self._targets))

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets)

    @property
    def urls(self) -> list[str]:
        return [target.url for target in self._targets]

    @property
    def ready(self) -> bool:
        """Whether a server takes requests."""
        return any(target.open for target in self._targets)

    @property
    def state(self) -> str:
        """READY, or the state of the first server that may serve."""
        states = [target.state for target in self._targets if not target.difference]
        return next((state for state in states if state in READY), (states or ["UNKNOWN"])[0])

    @property
    def all_known(self) -> bool:
        """Whether every server has said what it serves."""
        return all(target.identity is not None for target in self._targets)

    def others_ready(self, target: Target) -> bool:
        """Whether another server than this one takes requests."""
        return any(other.open and other is not target for other in self._targets)

    def state_of(self, url: str) -> str:
        """The state of the server with that address. Any thread may call this."""
        return next((target.state for target in self._targets if target.url == url), "UNKNOWN")

    def unavailable(self) -> Unavailable:
        return next((target for target in self._targets if not target.difference), self._targets[0]).unavailable()

    async def require_ready(self) -> None:
        """Return if a server takes requests. Raises Unavailable."""
        if not self.ready:
            await asyncio.gather(*(target.refresh() for target in self._targets))
            if not self.ready:
                raise self.unavailable()

    async def require_identity(self) -> Identity:
        """What the servers serve. Raises Unavailable."""
        await self.require_ready()
        if self.identity is None:
            raise self.unavailable()
        return self.identity

    async def wait_until_ready(self) -> None:
        """Wait without a time limit."""
        await self._ready.wait()

    async def predict(self, body: bytes, model: str) -> Json:
        """Queue one POST /predictions and return the prediction, which has ended.

        Raises QueueFull and the errors of Target.predict().
        """
        await self.require_ready()
        ticket = self.queue.enter(len(body))

        async def compute(target: Target) -> Json:
            prediction = await target.predict(body, model)
            if prediction["status"] == "succeeded":
                ticket.succeeded()
            return prediction

        return await self.run(ticket, compute)

    async def run(self, ticket: Ticket[Target], work: Callable[[Target], Awaitable[T]]) -> T:
        """Call `work` with the server that the queue chooses, and with another one if that server breaks.

        Raises the error of the last attempt; the first one's if no other server takes requests.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                async with ticket as target:
                    return await work(target)
            except GatewayError as error:
                broken = ticket.server if error.status in (502, 503) else None
                if broken is None or attempt == MAX_ATTEMPTS or not self.others_ready(broken):
                    raise
                log.warning("tried elsewhere", extra={"fields": {"target": broken.url, "error": error.message}})
            ticket.again()
        raise AssertionError("unreachable")

    def _update(self) -> None:
        """A server has been asked for its state: decide which ones get requests."""
        if self.identity is None and any(target.state == "UNKNOWN" for target in self._targets):
            return  # the first one to answer might be the one that differs
        self._compare()
        for target in self._targets:
            target.open = target.ready and target.identity is not None and not target.difference
        if self.ready:
            self._ready.set()
            self.queue.dispatch()
        else:
            self._ready.clear()
            self.queue.fail_waiting(self.unavailable())

    def _compare(self) -> None:
        """Choose what is served, and say how the other servers differ from it. A server that is down counts as well."""
        identities = [target.identity for target in self._targets]
        if len(identities) == len(self._compared) and all(map(operator.is_, identities, self._compared)):
            return
        self._compared = identities
        if not (known := [identity for identity in identities if identity is not None]):
            return
        sizes = [sum(not one.difference(other) for other in known) for one in known]
        largest = [identity for identity, size in zip(known, sizes, strict=True) if size == max(sizes)]
        served = self.identity
        chosen = next((each for each in largest if served and not served.difference(each)), largest[0])
        if served and served.version == chosen.version:
            chosen = replace(chosen, first_seen=served.first_seen)
        self.identity = chosen
        for target in self._targets:
            difference = chosen.difference(target.identity) if target.identity else ""
            if difference != target.difference:
                target.difference = difference
                message = "target differs and gets no requests" if difference else "target serves the same again"
                log.warning(message, extra={"fields": {"target": target.url, "difference": difference}})

    def _read_again(self) -> None:
        """SIGHUP: read the file of targets. Servers that left it finish what they have; new ones get requests."""
        assert self._settings.targets_file is not None
        try:
            urls = read_targets(self._settings.targets_file)
        except SettingsError as error:
            log.error("targets not read", extra={"fields": {"error": str(error)}})
            return
        before = {target.url: target for target in self._targets}
        self._targets[:] = [before.get(url) or Target(url, self._settings, self._update) for url in urls]
        for target in self._targets:
            if target.url not in before:
                self._in_background(target.__aenter__())
        for url in before.keys() - set(urls):
            before[url].open = False
            self._in_background(_retire(before[url]))
        log.info("targets read", extra={"fields": {"targets": urls}})
        self._update()

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _retire(target: Target) -> None:
    """Close a server's connections when it has no request any more, or on cancellation."""
    try:
        while target.running:
            await asyncio.sleep(RETIRE_SECONDS)
    finally:
        await target.__aexit__()
