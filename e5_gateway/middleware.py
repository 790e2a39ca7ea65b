"""What every request passes first and last: its id, the key, the host name, one log line and the counters.

Pure ASGI. Logs and labels have the route's template, never the path or the body: no text of a user gets there.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from e5_gateway.errors import GatewayError
from e5_gateway.metrics import Metrics
from e5_gateway.requests import Bodies
from e5_gateway.settings import KEY_VARIABLE, Settings

log = logging.getLogger("gateway")
OPEN = "/health-check"  # for load balancers, which have no key
KEYED = ("/v1/", "/predictions", "/openapi.json", "/metrics", "/shutdown")  # where a page at `/` has the other paths
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass
class Open:
    """What the requests of this moment hold.

    `pages`: requests of a page at `/`. Some of them stream until the person leaves; close_pages() ends them, because
    the end of the server need not wait for that.
    """

    bodies: Bodies
    pages: set[asyncio.Task[Any]] = field(default_factory=set)

    def close_pages(self) -> None:
        for task in set(self.pages):
            task.cancel()


class Middleware:
    """Middleware around the whole application. `refuse` turns an error into the answer that the path's API has.

    `page`: there is one at `/`, whose own paths need no key. Handlers find in `request.state`: `admitted`, whether the
    key is right or none is needed, and `held`, the bytes of the body that they have taken from `open_now.bodies`.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        refuse: Callable[[str, GatewayError], Response],
        open_now: Open,
        page: bool,
    ) -> None:
        self.app, self.settings, self.metrics, self.refuse = app, settings, metrics, refuse
        self.open, self.page = open_now, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 0
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        state = scope.setdefault("state", {})
        state |= {"held": 0, "admitted": self._has_key(headers)}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        refusal = self._refusal(scope["path"], headers, admitted=state["admitted"])
        if scope["type"] == "websocket":
            return await (send({"type": "websocket.close"}) if refusal else self.app(scope, receive, send))
        try:
            if refusal:
                await self.refuse(scope["path"], refusal)(scope, receive, sending)
            else:
                await self._pass(scope, receive, sending)
        except asyncio.CancelledError:  # the gateway ends
            if status:
                await send({"type": "http.response.body"})
            else:
                ending = GatewayError(503, "the gateway is being stopped: send the request again", retry_after=5)
                await self.refuse(scope["path"], ending)(scope, receive, sending)
        except Exception as error:
            # The message of an exception may quote a user's text: the log has its class and where it came from.
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            log.error("bug", extra={"fields": {"request_id": request_id, "error": type(error).__name__, "at": at}})
            if not status:
                broken = GatewayError(500, f"the gateway failed; its log has the request id {request_id}")
                await self.refuse(scope["path"], broken)(scope, receive, sending)
        finally:
            self.open.bodies.give_back(state["held"])
            self._record(scope, status, started, request_id)
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["path"].startswith((*KEYED, OPEN)) or task is None:
            return await self.app(scope, receive, send)
        self.open.pages.add(task)
        try:
            await self.app(scope, receive, send)
        finally:
            self.open.pages.discard(task)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        if self.settings.api_key is None:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() in (b"bearer", b"token") and hmac.compare_digest(
            given.strip(), self.settings.api_key.encode()
        )

    def _refusal(self, path: str, headers: dict[bytes, bytes], *, admitted: bool) -> GatewayError | None:
        """For a wrong key; without one, for names of this machine that a web page may have invented."""
        if self.settings.api_key is None:
            # Without a key the gateway listens on loopback, where pages of the web that are open in a browser of this
            # machine reach it, too: under a name of their own (DNS rebinding), or with their own Origin, which is
            # `null` in a frame without one.
            origin = headers.get(b"origin")
            if not _is_loopback(headers.get(b"host", b"")) or not (origin is None or _is_loopback(origin)):
                words = f"this gateway answers to localhost alone: set {KEY_VARIABLE} to open it to other host names"
                return GatewayError(403, words)
        elif not admitted and path != OPEN and (path.startswith(KEYED) or not self.page):
            cause = "the API key is wrong" if headers.get(b"authorization") else "no API key was sent"
            words = f"{cause}: send `Authorization: Bearer KEY` with the gateway's key"
            return GatewayError(401, words, "invalid_api_key")
        return None

    def _record(self, scope: Scope, status: int, started: float, request_id: str) -> None:
        seconds = time.perf_counter() - started
        route = _template(scope)
        self.metrics.requests.labels(route, scope["method"] if route != "unknown" else "any", status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={"fields": fields | {"ms": round(seconds * 1e3, 2)}})


def _is_loopback(address: bytes) -> bool:
    """Of a Host header, or of an Origin, which has a scheme in front."""
    try:
        name = urlsplit(address if b"://" in address else b"http://" + address).hostname or b""
        return name == b"localhost" or ipaddress.ip_address(name.decode("latin-1")).is_loopback
    except ValueError:
        return False


def _request_id(given: bytes) -> str:
    text = given.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else secrets.token_hex(8)


def _template(scope: Scope) -> str:
    """The route's path with its parameters' names. Whatever the playground's own paths are: one name for all."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    if path:
        return str(path)
    return "playground" if "endpoint" in scope or scope.get("app_root_path") is not None else "unknown"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        head = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(head | getattr(record, "fields", {}))


def log_to_stderr(level: str = "INFO") -> None:
    """Structured logs of the gateway on stderr; for the program, not for the library."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)
