"""The application: one target, one queue, one store, and the routes of three APIs around them."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from e5_gateway import cog_api, openai_api, replicate_api
from e5_gateway.errors import GatewayError, SettingsError, cog_body, openai_body, replicate_body
from e5_gateway.metrics import Metrics
from e5_gateway.middleware import Middleware, Open
from e5_gateway.predictions import Predictions
from e5_gateway.requests import Bodies
from e5_gateway.settings import Settings
from e5_gateway.store import Store
from e5_gateway.target import Target
from e5_gateway.webhooks import Webhooks

OPENAI_PATHS = ("/v1/embeddings", "/v1/models")


def create(settings: Settings, *, page: bool = False) -> FastAPI:
    """The gateway as an ASGI application; it connects when it is started. `page`: leave `/` to one that is mounted."""
    metrics = Metrics()
    target = Target(settings)
    store = Store(settings.database)
    webhooks = Webhooks(store, metrics, replicate_api.render)
    predictions = Predictions(target, store, webhooks, metrics, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with store, target, webhooks, predictions:
                yield
        except SettingsError as error:
            print(f"gateway: {error}", file=sys.stderr, flush=True)
            raise

    # FastAPI's own page of documentation loads scripts from elsewhere; /openapi.json is the target's.
    app = FastAPI(title="e5-cog gateway", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(openai_api.router(target, settings, metrics))
    app.include_router(replicate_api.router(target, predictions, settings))
    app.include_router(cog_api.router(target, settings, metrics))

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def render_metrics() -> Response:
        metrics.waiting.set(target.queue.waiting)
        metrics.running.set(target.queue.running)
        metrics.ready.set(target.ready)
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if not page:

        @app.get("/")
        async def index() -> Response:
            return Response(orjson.dumps(cog_api.index(target.state)), media_type="application/json")

    @app.exception_handler(GatewayError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)
        return refuse(request.scope["path"], error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: "no such path", 405: f"{request.method} is not a method of this path"}
        answer = refuse(
            request.scope["path"], GatewayError(error.status_code, what.get(error.status_code, error.detail))
        )
        answer.headers.update(error.headers or {})  # Allow
        return answer

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the log shows it

    open_now = app.state.open = Open(Bodies(settings.bodies_bytes))
    app.add_middleware(Middleware, settings=settings, metrics=metrics, refuse=refuse, open_now=open_now, page=page)
    return app


def refuse(path: str, error: GatewayError) -> Response:
    """The error in the words of the API that the path belongs to."""
    if path.startswith(OPENAI_PATHS) and path.count("/") <= 3:
        body = openai_body(error)
    elif path.startswith("/v1/"):
        body = replicate_body(error)
    else:
        body = cog_body(error)
    return Response(orjson.dumps(body), error.status, error.headers, media_type="application/json")
