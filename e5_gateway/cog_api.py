"""Cog's own endpoints, passed through: the same requests and answers, with the queue in front.

Prediction ids are validated, because coglet 0.23 creates a folder of that name. POST /shutdown is refused: it would end
the server for everyone. Webhooks are refused, because coglet sends them to any address and follows redirects.
"""

import asyncio
import contextlib
import re

import aiohttp
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5_gateway.errors import MAX_MESSAGE, ErrorFormat, GatewayError, Json, Unavailable, shorten
from e5_gateway.queue import Ticket
from e5_gateway.requests import cancel_on_disconnect, read_json
from e5_gateway.settings import GatewaySettings
from e5_gateway.target import OWN_ID, Target, TargetResponse, new_id
from e5_gateway.targets import Targets
from e5_gateway.uploads import Uploads

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
WEBHOOK = "`webhook` goes with POST /v1/predictions: on this path the server itself would send it, to any address"
PASS_SECONDS = 10.0
"""Time limit of a request that is passed on without the queue."""
MAX_FAILURE = 4096
"""Bytes of a failed prediction. Its logs are empty if the server's worker has died."""
MAX_ERRORS = 20
"""Entries of the server's `detail` that are passed on."""


class BadResponse(GatewayError):
    """A server answered 5xx, or broke while it ran the prediction. Without another server, the client gets it."""

    def __init__(self, response: TargetResponse) -> None:
        super().__init__(502, f"the server answered HTTP {response.status}", "bad_gateway")
        self.response = response


def router(targets: Targets, uploads: Uploads, settings: GatewaySettings) -> APIRouter:
    routes = APIRouter()
    tickets: dict[str, Ticket[Target]] = {}  # by prediction id

    async def predict(request: Request, prediction_id: str | None, method: str) -> Response:
        body = await read_json(request, settings.max_body_bytes)
        name = _check_new_id(body.get("id") if prediction_id is None else prediction_id)
        if body.get("webhook") is not None:
            raise GatewayError(422, WEBHOOK)
        path = f"/predictions/{name}" if method == "PUT" else "/predictions"
        headers = {"prefer": request.headers["prefer"]} if "prefer" in request.headers else {}
        identity = await targets.require_identity()
        inputs = body.get("input")
        with_files = isinstance(inputs, dict) and uploads.has_files(inputs, identity)
        content = orjson.dumps(body | ({"id": name} if method == "POST" or "id" in body else {}))
        del body, inputs  # free the parsed texts while it waits: as Python objects they take ten times their bytes

        async def send(server: Target) -> TargetResponse:
            filled = content
            if with_files:
                sent = orjson.loads(content)
                sent["input"] = await uploads.inlined(sent["input"], identity)
                filled = await asyncio.to_thread(orjson.dumps, sent)
                del sent
            return await server.compute(filled, method, path, **headers)

        async def follow(first: Ticket[Target]) -> TargetResponse | None:
            """The answer of the server that runs the same PUT. None: that one was canceled before its turn."""
            try:
                server = await asyncio.shield(first.turn)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise  # the client has disconnected
                return None
            return await send(server)

        while (first := tickets.get(name)) is not None:
            if followed := await cancel_on_disconnect(request, follow(first)):
                return _json(_without_long_quotes(followed), followed.status)
            await asyncio.sleep(0)

        async def compute(server: Target) -> TargetResponse:
            response = await send(server)
            if response.status >= 500:
                raise BadResponse(response)
            if len(response.content) < MAX_FAILURE and b'"failed"' in response.content:
                try:
                    await server.check(response.json())
                except Unavailable:
                    raise BadResponse(response) from None
            if response.status == 200 and b'"succeeded"' in response.content:
                ticket.succeeded()
            return response

        async def work() -> TargetResponse:
            try:
                return await targets.run(ticket, compute)
            except BadResponse as error:
                return error.response
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise  # the client has disconnected
                return TargetResponse(200, orjson.dumps({"id": name, "status": "canceled"}))

        async with uploads.turn(wait=False) if with_files else contextlib.nullcontext():
            ticket = tickets[name] = targets.queue.enter(len(content))
            try:
                response = await cancel_on_disconnect(request, work())
            finally:
                ticket.leave()
                del tickets[name]
        return _json(_without_long_quotes(response), response.status)

    @routes.post("/predictions")
    async def post(request: Request) -> Response:
        return await predict(request, None, "POST")

    @routes.put("/predictions/{prediction_id}")
    async def put(request: Request, prediction_id: str) -> Response:
        return await predict(request, prediction_id, "PUT")

    @routes.post("/predictions/{prediction_id}/cancel")
    async def cancel(prediction_id: str) -> Response:
        ticket, path = tickets.get(_check_id(prediction_id)), f"/predictions/{prediction_id}/cancel"
        if ticket is not None and ticket.turn.cancel():
            return _json(b"{}")
        if ticket is not None and ticket.server is not None:
            return await pass_through(ticket.server, "POST", path)
        # It may run without a request that waits for it (respond-async).
        for target in [target for target in targets if target.ready] or targets:
            response = await pass_through(target, "POST", path)
            if response.status_code != 404:
                break
        return response

    @routes.api_route("/health-check", methods=["GET", "HEAD"])
    async def health(request: Request) -> Response:
        """For clients with the key: the server's own answer, or of several servers the states. Others get one state."""
        status = 200 if targets.ready or targets.state == "STARTING" else 503
        if not request.state.has_key:
            return _json(orjson.dumps({"status": targets.state}), status)
        first, *others = targets
        if not others:
            return await pass_through(first, "GET", "/health-check")
        servers = [
            {
                "url": target.url,
                "status": target.state,
                "running": target.running,
                **({"difference": target.difference} if target.difference else {}),
            }
            for target in targets
        ]
        return _json(orjson.dumps({"status": targets.state, "targets": servers}), status)

    @routes.post("/shutdown")
    async def shutdown() -> Response:
        raise GatewayError(403, "the gateway does not end the server: send this to the server itself")

    async def pass_through(target: Target, method: str, path: str) -> Response:
        try:
            async with asyncio.timeout(PASS_SECONDS):
                response = await target.send(method, path)
        except (aiohttp.ClientError, OSError, TimeoutError):
            await target.refresh(force=True)
            if target.ready:
                raise GatewayError(504, f"the server has not answered for {PASS_SECONDS:.0f} s") from None
            raise target.unavailable() from None
        return _json(response.content, response.status)

    return routes


def error_body(error: GatewayError) -> Json:
    """Cog's error: {detail}, and the target's state as `status` if it is the cause."""
    return {"detail": error.message} | ({"status": error.state} if error.state else {})


ERRORS = ErrorFormat(re.compile(""), error_body)
"""For every path that no other API has."""


def _check_id(prediction_id: object) -> str:
    """A valid id. Raises GatewayError 422."""
    if not isinstance(prediction_id, str) or not ID.fullmatch(prediction_id):
        raise GatewayError(422, "the id must be 1 to 128 letters, digits, `-` and `_`, the first a letter or a digit")
    return prediction_id


def _check_new_id(prediction_id: object) -> str:
    """The id of a new prediction; a random one for None. Raises GatewayError 422."""
    if prediction_id is None:
        return new_id()
    if _check_id(prediction_id).startswith(OWN_ID):
        raise GatewayError(422, f"ids that begin with `{OWN_ID}` are the gateway's own: choose another one")
    return str(prediction_id)


def _without_long_quotes(response: TargetResponse) -> bytes:
    """The response's body. The server's errors quote whole inputs: these are shortened."""
    if response.status < 400 or len(response.content) < MAX_MESSAGE:
        return response.content
    try:
        detail = response.json()["detail"][:MAX_ERRORS]
        return orjson.dumps({"detail": [{**entry, "msg": shorten(entry["msg"])} for entry in detail]})
    except (ValueError, KeyError, TypeError):
        return orjson.dumps({"detail": shorten(response.content.decode(errors="replace"), MAX_MESSAGE)})


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
