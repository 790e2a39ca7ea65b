"""Cog's own endpoints, passed on: same requests, same answers, but for the queue in front of them.

The ids of predictions are checked, because coglet 0.23 makes a folder of that name. POST /shutdown is not passed on: it
would end the server for everyone.
"""

import asyncio
import re

import aiohttp
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5_gateway.errors import GatewayError, Json
from e5_gateway.metrics import Metrics
from e5_gateway.queue import Place
from e5_gateway.requests import read_json, unless_gone
from e5_gateway.settings import Settings
from e5_gateway.target import HEALTH_SECONDS, Answer, Target, new_id

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def router(target: Target, settings: Settings, metrics: Metrics) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    places: dict[str, Place] = {}  # of predictions, so that those which wait here can be canceled

    async def predict(request: Request, name: str | None, method: str) -> Response:
        body = await read_json(request, settings.body_bytes)
        name = _checked(body.get("id") if name is None else name)
        path = f"/predictions/{name}" if method == "PUT" else "/predictions"
        headers = {key: request.headers[key] for key in ("prefer",) if key in request.headers}
        content = orjson.dumps(body | ({"id": name} if method == "POST" or "id" in body else {}))
        del body  # as objects its texts take ten times their bytes
        await target.check()
        place = target.queue.enter(len(content))
        places.setdefault(name, place)

        async def work() -> Answer:
            try:
                async with place:
                    return await target.compute(content, method, path, **headers)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise  # the client has gone
                return Answer(200, orjson.dumps({"id": name, "status": "canceled"}))

        try:
            answer = await unless_gone(request, work())
        finally:
            place.leave()
            if places.get(name) is place:
                del places[name]
        return _passed(answer)

    @routes.post("/predictions")
    async def post(request: Request) -> Response:
        return await predict(request, None, "POST")

    @routes.put("/predictions/{prediction_id}")
    async def put(request: Request, prediction_id: str) -> Response:
        return await predict(request, prediction_id, "PUT")

    @routes.post("/predictions/{prediction_id}/cancel")
    async def cancel(prediction_id: str) -> Response:
        place = places.get(_checked(prediction_id))
        if place is not None and place.turn.cancel():  # False: it has its turn, so that the server knows it
            return _passed(Answer(200, b"{}"))
        return await asked("POST", f"/predictions/{prediction_id}/cancel")

    @routes.api_route("/health-check", methods=["GET", "HEAD"])
    async def health(request: Request) -> Response:
        """The server's own to those who have the key; its state alone to others, without asking it."""
        if request.state.admitted:
            return await asked("GET", "/health-check")
        status = 200 if target.ready or target.state == "STARTING" else 503
        return _passed(Answer(status, orjson.dumps({"status": target.state})))

    @routes.get("/openapi.json")
    async def schema() -> Response:
        return await asked("GET", "/openapi.json")

    @routes.post("/shutdown")
    async def shutdown() -> Response:
        raise GatewayError(403, "the gateway does not end the server: send this to the server itself")

    async def asked(method: str, path: str) -> Response:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                return _passed(await target.send(method, path))
        except (aiohttp.ClientError, OSError, TimeoutError):
            await target.ask(fresh=True)
            if target.ready:
                raise GatewayError(504, f"the server has not answered for {HEALTH_SECONDS:.0f} s") from None
            raise target.unavailable() from None

    return routes


def index(state: str) -> Json:
    """GET / where there is no page."""
    return {
        "name": "e5-cog gateway",
        "target": state,
        "openai": "/v1/embeddings, /v1/models",
        "replicate": "/v1/predictions, /v1/models/{owner}/{name}",
        "cog": "/predictions, /health-check, /openapi.json",
        "metrics": "/metrics",
    }


def _checked(name: object) -> str:
    if name is None:
        return new_id()
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise GatewayError(422, "the id must be 1 to 128 letters, digits, `-` and `_`, the first a letter or a digit")
    return name


def _passed(answer: Answer) -> Response:
    return Response(answer.content, answer.status, media_type="application/json")
