"""The ASGI application: the targets, one queue and one store behind the routes of all APIs."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from e5.errors import SettingsError
from e5_gateway import cog_api, cohere_api, documentation, files_api, openai_api, replicate_api, tei_api, web_page
from e5_gateway.access import Access
from e5_gateway.destinations import Destinations
from e5_gateway.errors import GatewayError
from e5_gateway.metrics import Metrics
from e5_gateway.middleware import Middleware
from e5_gateway.predictions import Predictions
from e5_gateway.requests import BodyBudget
from e5_gateway.settings import GatewaySettings
from e5_gateway.store import Prediction, Store
from e5_gateway.targets import Targets
from e5_gateway.uploads import Uploads
from e5_gateway.webhooks import Webhooks

ERROR_FORMATS = (openai_api.ERRORS, cohere_api.ERRORS, replicate_api.ERRORS, tei_api.ERRORS, cog_api.ERRORS)
"""The first one whose `paths` match writes the errors of a path."""


def create(settings: GatewaySettings) -> FastAPI:
    """Create the application, which connects to the targets at startup."""
    metrics = Metrics()
    targets = Targets(settings)
    store = Store(settings.database)
    destinations = Destinations(lambda: targets.urls, settings.webhooks_to)

    def webhook_body(prediction: Prediction) -> bytes:
        return replicate_api.render(prediction, settings.public_url or prediction.base)

    webhooks = Webhooks(store, metrics, destinations, webhook_body)
    uploads = Uploads(store, Destinations(lambda: targets.urls, settings.files_from, "--files-from"))
    predictions = Predictions(targets, store, uploads, webhooks, metrics, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with store, targets, webhooks, predictions:
                yield
        except SettingsError as error:
            print(f"gateway: {error}", file=sys.stderr, flush=True)
            raise

    # FastAPI's own pages load scripts from other servers: documentation.py has ours.
    app = FastAPI(title="e5-cog gateway", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(
        openai_api.router(
            targets, settings, metrics, lambda identity: replicate_api.model_list(identity, predictions.ended)
        )
    )
    app.include_router(cohere_api.router(targets, settings, metrics))
    app.include_router(replicate_api.router(targets, predictions, settings))
    app.include_router(files_api.router(uploads, settings))
    app.include_router(tei_api.router(targets, settings, metrics))
    app.include_router(cog_api.router(targets, uploads, settings))
    app.include_router(documentation.router(targets, settings))

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def render_metrics() -> Response:
        metrics.waiting.set(targets.queue.waiting)
        return Response(metrics.render(targets), media_type="text/plain; version=0.0.4; charset=utf-8")

    web_page.add(app)

    @app.exception_handler(GatewayError)
    async def gateway_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)
        return error_response(request.scope["path"], error)

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {404: "no such path", 405: f"{request.method} is not a method of this path"}
        message = messages.get(error.status_code, error.detail)
        response = error_response(request.scope["path"], GatewayError(error.status_code, message))
        response.headers.update(error.headers or {})  # Allow
        return response

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # for the log; the client has gone

    app.state.metrics, app.state.targets = metrics, targets
    app.add_middleware(
        Middleware,
        access=Access(settings.api_key),
        body_budget=BodyBudget(settings.max_bodies_bytes),
        metrics=metrics,
        error_response=error_response,
    )
    return app


def error_response(path: str, error: GatewayError) -> Response:
    """The error in the format of the API that has the path."""
    body = next(api.body for api in ERROR_FORMATS if api.paths.match(path))
    return Response(orjson.dumps(body(error)), error.status, error.headers, media_type="application/json")
