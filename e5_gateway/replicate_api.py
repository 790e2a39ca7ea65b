"""Replicate's HTTP API: predictions, and the served model under any owner's name.

Any owner is accepted, so that `replicate.run("you/e5-mistral-7b-instruct", …)` needs no change but the address. The
version's id is the SHA-256 of the model's name and its schema. Errors are problem details (RFC 7807), as Replicate's
clients read them.
"""

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import jsonschema_rs
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5_gateway.destinations import Destinations, is_web_address
from e5_gateway.errors import MAX_QUOTE, ErrorFormat, GatewayError, Json, invalid_field, shorten
from e5_gateway.predictions import Predictions
from e5_gateway.requests import read_json
from e5_gateway.settings import GatewaySettings
from e5_gateway.store import Prediction, PredictionSummary
from e5_gateway.target import Identity
from e5_gateway.targets import Targets
from e5_gateway.webhooks import END, START, Webhook

OWNER = "e5"
"""The owner in answers to requests that name none."""
HOME = "https://github.com/microsoft/unilm/tree/master/e5"
FIELDS = ("version", "input", "webhook", "webhook_events_filter", "webhook_completed", "stream")
EVENTS = ("start", "output", "logs", "completed")
PAGE_SIZE = 50
MAX_ERRORS = 20
MAX_WAIT_SECONDS = 60.0
MIN_LIFETIME_SECONDS, MAX_LIFETIME_SECONDS = 5, 365 * 24 * 3600
"""Of `Cancel-After`. Replicate documents the minimum, and no maximum."""
TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    404: "Not found",
    413: "Request too large",
    422: "Input validation failed",
    429: "Too many requests",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}
_VERSION = re.compile(r"(?:(?P<owner>[^/:]+)/(?P<name>[^/:]+)(?::|$))?(?P<id>[0-9a-f]{64})?")
_URL = re.compile(r"[\x21-\x7e]{1,2048}")
_OWNER = re.compile(r"[\w.-]{1,64}", re.ASCII)
_WAIT = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*\"?(\d+)\"?)?(?=$|[,;\s])")
_DURATION = re.compile(r"([0-9]{1,9})|(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")
_schemas: dict[str, tuple[Json, jsonschema_rs.Validator]] = {}  # by version


def router(targets: Targets, predictions: Predictions, settings: GatewaySettings) -> APIRouter:
    routes = APIRouter()

    async def create(request: Request, owner: str | None, name: str | None) -> Response:
        identity = await targets.require_identity()
        body = await read_json(request, settings.max_body_bytes)
        for field in body:
            if field not in FIELDS:
                raise invalid_field(field, f"unknown field; the fields are {', '.join(FIELDS)}")
        if not isinstance(body.get("stream"), bool | None):
            raise invalid_field("stream", "must be a boolean")
        if owner is None:
            owner, name = _owner_and_name(body.get("version"), identity)
        _check_model(owner, str(name), identity)
        given = check_inputs(body.get("input", {}), identity)
        webhook = _webhook(body, predictions.webhooks.destinations)
        wait = _wait_seconds(request.headers.get("prefer", ""))
        lifetime = parse_cancel_after(request.headers.get("cancel-after"))
        base, model = own_address(request, settings), f"{owner}/{identity.model}"
        given = await predictions.uploads.check(given, identity, base)
        inputs, with_files = orjson.dumps(given), predictions.uploads.has_files(given, identity)
        del body, given  # free the parsed texts while it waits: as Python objects they take ten times their bytes
        prediction = await predictions.create(
            model, identity.version, inputs, base, webhook, wait, lifetime, with_files=with_files
        )
        if wait is None or prediction.final:
            return _json(render(prediction, base), 201)
        # Both official clients (Python 1.0.7, npm 1.4.0) take any status but `starting` for the end of a wait.
        return _json(render(replace(prediction, status="starting"), base), 202)

    @routes.post("/v1/predictions")
    async def create_by_version(request: Request) -> Response:
        return await create(request, None, None)

    @routes.post("/v1/models/{owner}/{name}/predictions")
    async def create_by_model(request: Request, owner: str, name: str) -> Response:
        return await create(request, owner, name)

    @routes.get("/v1/predictions/{prediction_id}")
    async def get(request: Request, prediction_id: str) -> Response:
        return _json(render(_existing(await predictions.get(prediction_id)), own_address(request, settings)))

    @routes.post("/v1/predictions/{prediction_id}/cancel")
    async def cancel(request: Request, prediction_id: str) -> Response:
        return _json(render(_existing(await predictions.cancel(prediction_id)), own_address(request, settings)))

    @routes.get("/v1/predictions")
    async def newest(request: Request) -> Response:
        """A page of predictions, newest first, without their inputs, outputs and logs."""
        page = await predictions.page(_parse_cursor(request.query_params.get("cursor")), PAGE_SIZE + 1)
        base, next_url = own_address(request, settings), None
        if len(page) > PAGE_SIZE:
            page = page[:PAGE_SIZE]
            cursor = base64.urlsafe_b64encode(f"{page[-1].created_at!r} {page[-1].id}".encode()).decode()
            next_url = f"{base}/v1/predictions?{urlencode({'cursor': cursor})}"
        results = [summary(prediction, base) for prediction in page]
        return _json(orjson.dumps({"previous": None, "next": next_url, "results": results}))

    @routes.get("/v1/models/{owner}/{name}")
    async def model(owner: str, name: str) -> Response:
        identity = await targets.require_identity()
        _check_model(owner, name, identity)
        return _json(orjson.dumps(model_object(owner, identity, predictions.ended)))

    @routes.get("/v1/models/{owner}/{name}/versions")
    async def versions(owner: str, name: str) -> Response:
        identity = await targets.require_identity()
        _check_model(owner, name, identity)
        return _json(orjson.dumps({"previous": None, "next": None, "results": [_version_object(identity)]}))

    @routes.get("/v1/models/{owner}/{name}/versions/{version}")
    async def version(owner: str, name: str, version: str) -> Response:
        identity = await targets.require_identity()
        _check_model(owner, name, identity)
        if version != identity.version:
            raise GatewayError(404, f"{identity.model} has one version, {identity.version}")
        return _json(orjson.dumps(_version_object(identity)))

    @routes.get("/v1/webhooks/default/secret")
    async def secret() -> Response:
        return _json(orjson.dumps({"key": predictions.webhooks.key}))

    return routes


def own_address(request: Request, settings: GatewaySettings) -> str:
    """The gateway's address in a response: the public one, or that of the request, never that of another client."""
    return settings.public_url or str(request.base_url).rstrip("/")


def error_body(error: GatewayError) -> Json:
    """{title, detail, status}, and invalid_fields for inputs at fault."""
    title = TITLES.get(error.status, "Error")
    body: Json = {"title": title, "detail": error.message, "status": error.status}
    return body | ({"invalid_fields": error.invalid_fields} if error.invalid_fields else {})


ERRORS = ErrorFormat(re.compile(r"/v1/"), error_body)


def model_list(identity: Identity, runs: int) -> Json:
    """Replicate's page of models, with the one that is served."""
    return {"previous": None, "next": None, "results": [model_object(OWNER, identity, runs)]}


def summary(prediction: PredictionSummary, base: str) -> Json:
    """Replicate's prediction object in a list, where input, logs and output are null. `base`: the gateway's address.

    Times are in UTC: created_at to the millisecond, the others to the microsecond. The fields are those of Replicate's
    schema (https://api.replicate.com/openapi.json, as of April 2026). It requires urls.web, a page for browsers: here
    that is the prediction's JSON.
    """
    url = f"{base}/v1/predictions/{prediction.id}"
    deadline = {} if prediction.deadline is None else {"deadline": timestamp(prediction.deadline)}
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "input": None,
        "logs": None,
        "output": None,
        "data_removed": False,
        "source": "api",
        "error": prediction.error,
        "status": prediction.status,
        "created_at": timestamp(prediction.created_at, "milliseconds"),
        "started_at": timestamp(prediction.started_at),
        "completed_at": timestamp(prediction.completed_at),
        "urls": {"web": url, "get": url, "cancel": f"{url}/cancel"},
        "metrics": _raw(prediction.metrics) or {},
    } | deadline


def render(prediction: Prediction, base: str) -> bytes:
    """Replicate's prediction object, as JSON. `base`: the gateway's address."""
    details = {"input": _raw(prediction.input), "logs": prediction.logs, "output": _raw(prediction.output)}
    return orjson.dumps(summary(prediction, base) | details)


def timestamp(seconds: float | None, precision: str = "microseconds") -> str | None:
    """Unix time → 2026-11-22T20:10:17.883156Z"""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def check_inputs(inputs: object, identity: Identity) -> Json:
    """Validate the inputs by the model's schema and drop those that are null and may be. Raises GatewayError 422."""
    if not isinstance(inputs, dict):
        raise invalid_field("input", "must be an object")
    properties, _ = _schema(identity)
    given = {k: v for k, v in inputs.items() if not (v is None and properties.get(k, {}).get("nullable"))}
    if errors := _first_errors(given, identity):
        raise GatewayError(422, "", invalid_fields=errors)
    return given


def _schema(identity: Identity) -> tuple[Json, jsonschema_rs.Validator]:
    """The inputs' properties, and a validator that refuses unknown inputs. (The server drops them silently.)"""
    if identity.version not in _schemas:
        _schemas.clear()  # one model is served at a time
        schemas = identity.schema["components"]["schemas"]
        schema = schemas["Input"] | {"additionalProperties": False, "components": {"schemas": schemas}}
        _schemas[identity.version] = schemas["Input"]["properties"], jsonschema_rs.validator_for(schema)
    return _schemas[identity.version]


def _first_errors(inputs: Json, identity: Identity) -> list[Json]:
    """The first error of each input. (jsonschema_rs 0.60 takes half a minute for all errors of a long list.)"""
    properties, validator = _schema(identity)
    errors: list[Json] = []
    for name, value in inputs.items():
        try:
            validator.validate({name: value})
        except jsonschema_rs.ValidationError as error:
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            keyword = str(error.schema_path[-1])
            message = error.message if len(error.message) < MAX_QUOTE else f"violates `{keyword}` of the model's schema"
            if keyword == "additionalProperties":
                message += f"; the inputs are {', '.join(properties)}"
            elif keyword == "enum":  # the library's message ends with "or 4 other candidates"
                message = f"choose one of {', '.join(identity.schema['components']['schemas'][name]['enum'])}"
            errors.append({"type": keyword, "field": f"input{path}", "description": message})
            if len(errors) == MAX_ERRORS:
                break
    return errors


def _check_model(owner: str, name: str, identity: Identity) -> None:
    if name != identity.model or not _OWNER.fullmatch(owner):
        called = shorten(f"{owner}/{name}")
        raise GatewayError(404, f"no model is called {called} here: there is {OWNER}/{identity.model}")


def _owner_and_name(version: object, identity: Identity) -> tuple[str, str]:
    """Parse `version`: the version's id, owner/name:id or owner/name. Raises GatewayError 422."""
    match = _VERSION.fullmatch(version) if isinstance(version, str) and version else None
    if match is None or match["id"] not in (None, identity.version):
        message = f"the version does not exist here: pass {identity.version}, or {OWNER}/{identity.model}"
        raise invalid_field("version", message)
    return match["owner"] or OWNER, match["name"] or identity.model


def _webhook(body: Json, destinations: Destinations) -> Webhook | None:
    """The webhook of a request. Raises GatewayError 422.

    A prediction's output and logs arrive with its end, so the events `output` and `logs` become `completed`.
    """
    events = body.get("webhook_events_filter")
    events = EVENTS if events is None else events
    if not isinstance(events, list | tuple) or any(event not in EVENTS for event in events):
        raise invalid_field("webhook_events_filter", f"must be a list of some of {', '.join(EVENTS)}")
    only_end = body.get("webhook") is None
    field = "webhook_completed" if only_end else "webhook"
    url = body.get(field)
    if url is None:
        return None
    if not (isinstance(url, str) and _URL.fullmatch(url) and is_web_address(url)):
        raise invalid_field(field, "must be the URL of a web server, https://… or http://…")
    if problem := destinations.problem(url):
        raise invalid_field(field, problem)
    start = (START,) if START in events and not only_end else ()
    end = (END,) if only_end or set(events) - {START} else ()
    return Webhook(url, start + end)


def _wait_seconds(prefer: str) -> float | None:
    """Seconds of the header `Prefer: wait` or `wait=N`, at most 60; None without it and for 0."""
    match = _WAIT.search(prefer.lower())
    return (min(MAX_WAIT_SECONDS, float(match[1] or MAX_WAIT_SECONDS)) or None) if match else None


def parse_cancel_after(header: str | None) -> int | None:
    """Seconds of the header `Cancel-After`; None without it. Raises GatewayError 422.

    Format and minimum are those of Replicate's schema, by which the time counts from the prediction's creation.

    >>> parse_cancel_after("90"), parse_cancel_after("1h30m45s")
    (90, 5445)
    """
    if header is None:
        return None
    match = _DURATION.fullmatch(header)
    numbers = map(int, match.groups("0")) if match else (0, 0, 0, 0)
    seconds = sum(number * unit for number, unit in zip(numbers, (1, 3600, 60, 1), strict=True))
    if not MIN_LIFETIME_SECONDS <= seconds <= MAX_LIFETIME_SECONDS:
        limits = f"{MIN_LIFETIME_SECONDS} s to {MAX_LIFETIME_SECONDS // 3600:,} h"
        raise invalid_field("Cancel-After", f"must be a duration of {limits}, such as 30, 90s, 5m or 1h30m45s")
    return seconds


def _parse_cursor(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    try:
        created_at, _, prediction_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        return float(created_at), prediction_id
    except ValueError:
        raise GatewayError(400, "`cursor` is none that this API gave") from None


def model_object(owner: str, identity: Identity, runs: int) -> Json:
    """Replicate's model object."""
    entry = identity.catalog_entry
    facts = f", {entry.languages}, {entry.license}" if entry else ""
    return {
        "url": HOME,
        "owner": owner,
        "name": identity.model,
        "description": f"Text embeddings of {identity.dimensions} dimensions{facts}",
        "visibility": "public",
        "github_url": HOME,
        "paper_url": None,
        "license_url": None,
        "run_count": runs,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": _version_object(identity),
    }


def _version_object(identity: Identity) -> Json:
    return {
        "id": identity.version,
        "created_at": timestamp(identity.first_seen),
        "cog_version": identity.coglet,
        "openapi_schema": identity.schema,
    }


def _existing(prediction: Prediction | None) -> Prediction:
    if prediction is None:
        raise GatewayError(404, "no such prediction: it never was, or ended longer ago than predictions are kept")
    return prediction


def _raw(value: bytes | None) -> Any:
    return None if value is None else orjson.Fragment(value)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
