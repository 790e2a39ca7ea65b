"""Outer middleware: request ID, access control, security headers, memory budget for bodies, last-resort errors, log and
metrics.

Pure ASGI. Logs and metric labels contain the route's template, never the path or the body, so no user's text.
"""

import asyncio
import re
import secrets
import time
import traceback
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from e5_gateway.access import Access, read_headers
from e5_gateway.errors import GatewayError
from e5_gateway.logs import log
from e5_gateway.metrics import Metrics
from e5_gateway.requests import BodyBudget

BROWSER_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
POLICY_HEADER = b"content-security-policy"
API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Middleware:
    """`error_response` writes an error in the format of the path's API.

    Handlers find in `request.state`: `has_key` (the key is right, or none is needed) and `acquire_body`, which takes
    bytes from the BodyBudget until the request ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        body_budget: BodyBudget,
        metrics: Metrics,
        error_response: Callable[[str, GatewayError], Response],
    ) -> None:
        self.app, self.access, self.body_budget = app, access, body_budget
        self.metrics, self.error_response = metrics, error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = read_headers(scope["headers"])
        scope.setdefault("state", {})["has_key"] = self.access.has_key(headers)
        refusal = self.access.refusal(scope["path"], headers, scope.get("method", "GET"))
        if scope["type"] == "http":
            request_id = _request_id(headers.get(b"x-request-id", b""))
            with self.body_budget.share() as acquire_body:
                scope["state"]["acquire_body"] = acquire_body
                await self._http(scope, receive, send, refusal, request_id)
        elif refusal:
            await send({"type": "websocket.close"})
        else:
            await self.app(scope, receive, send)

    async def _http(
        self, scope: Scope, receive: Receive, send: Send, refusal: GatewayError | None, request_id: str
    ) -> None:
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", request_id.encode()), *BROWSER_HEADERS]
                if not any(name == POLICY_HEADER for name, _ in message["headers"]):
                    added.append((POLICY_HEADER, API_POLICY))
                message["headers"] = [*message["headers"], *added]
            await send(message)

        async def send_error(error: GatewayError) -> None:
            await self.error_response(scope["path"], error)(scope, receive, send_with_id)

        try:
            if refusal:
                await send_error(refusal)
            else:
                await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # shutdown
            if status:
                await send({"type": "http.response.body"})
            else:
                stopping = "the gateway is being stopped: send the request again"
                await send_error(GatewayError(503, stopping, retry_after=5))
        except Exception as error:
            # An exception's message may quote a user's text, so the log gets its class and the stack.
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            at = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            log.error("bug", extra={"fields": {"request_id": request_id, "error": type(error).__name__, "at": at}})
            if not status:
                await send_error(GatewayError(500, f"the gateway failed; its log has the request id {request_id}"))
        finally:
            self._record(scope, status, time.perf_counter() - started, request_id)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = _route(scope)
        self.metrics.requests.labels(route, scope["method"] if route != "unknown" else "any", status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={"fields": fields | {"ms": round(seconds * 1e3, 2)}})


def _request_id(header: bytes) -> str:
    """The client's X-Request-ID if it is safe to log, else a random one."""
    text = header.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else secrets.token_hex(8)


def _route(scope: Scope) -> str:
    """The route's template, such as /v1/models/{name}. The page's files are "/page"."""
    path = getattr(scope.get("route"), "path", None)
    if path:
        return str(path)
    return "/page" if scope["path"].startswith("/page/") and "endpoint" in scope else "unknown"
