"""What every request passes first and last: its id, the key, the host name, one log line and the counters.

Pure ASGI. Logs and labels have the route's template, never the path or the body: no text of a user gets there.
"""

import asyncio
import hmac
import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.settings import KEY_VARIABLE, Settings

log = logging.getLogger("gateway")
OPEN = ("/health-check",)  # for load balancers, which have no key
KEYED = ("/v1/", "/predictions", "/openapi.json", "/metrics", "/shutdown")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


Pages = set[asyncio.Task[object]]


def close_pages(pages: Pages) -> None:
    """End what a page at `/` streams."""
    for task in set(pages):
        task.cancel()


class Edge:
    """Middleware around the whole application. `refuse` turns an error into the answer that the path's API has.

    `pages`: here are the requests of a page at `/` while they run. Some of them stream until the person leaves, which
    the end of the server need not wait for: close_pages() ends them.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        refuse: Callable[[str, GatewayError], Response],
        pages: Pages,
    ) -> None:
        self.app, self.settings, self.metrics, self.refuse, self.pages = app, settings, metrics, refuse, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._admit(scope, headers)
        except GatewayError as error:
            if scope["type"] == "http":
                await self.refuse(scope["path"], error)(scope, receive, sending)
                self._record(scope, status, started, request_id)
            return None
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        page = None if scope["path"].startswith(KEYED) else asyncio.current_task()
        if page:
            self.pages.add(page)
        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            if page not in self.pages or not status:
                raise
            await send({"type": "http.response.body"})  # close_pages()
        except Exception as error:
            # The message of an exception may quote a user's text: the log has its class and where it came from.
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            fields = {"request_id": request_id, "error": type(error).__name__, "at": at}
            log.error("bug", extra={"fields": fields})
            if not status:
                broken = GatewayError(500, f"the gateway failed; its log has the request id {request_id}")
                await self.refuse(scope["path"], broken)(scope, receive, sending)
        finally:
            if page:
                self.pages.discard(page)
            self._record(scope, status, started, request_id)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise GatewayError for a wrong key, and for a name of this machine that a web page may have invented."""
        key, path = self.settings.api_key, scope["path"]
        if key is None:
            # Without a key the gateway listens on loopback, where pages of the web that are open in a browser of this
            # machine reach it, too: under a name of their own (DNS rebinding), or with their own Origin.
            origin = headers.get(b"origin", b"").partition(b"://")[2]
            if not _is_loopback(headers.get(b"host", b"")) or (origin and not _is_loopback(origin)):
                raise GatewayError(
                    403, f"this gateway answers to localhost alone: set {KEY_VARIABLE} to open it to other host names"
                )
        elif path.startswith(KEYED) and path not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() not in (b"bearer", b"token") or not hmac.compare_digest(given.strip(), key.encode()):
                cause = "the API key is wrong" if given else "no API key was sent"
                raise GatewayError(
                    401, f"{cause}: send `Authorization: Bearer KEY` with the gateway's key", "invalid_api_key"
                )

    def _record(self, scope: Scope, status: int, started: float, request_id: str) -> None:
        seconds = time.perf_counter() - started
        route = _template(scope)
        self.metrics.requests.labels(route, scope["method"] if route != "unknown" else "any", status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={"fields": fields | {"ms": round(seconds * 1e3, 2)} | scope["state"].get("log", {})})


def _is_loopback(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    return name in LOOPBACK_NAMES or name.rpartition(":")[0] in LOOPBACK_NAMES


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
