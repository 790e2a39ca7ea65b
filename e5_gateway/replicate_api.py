"""Replicate's HTTP API: predictions, and the one model that there is, under any owner's name.

Any owner, so that `replicate.run("you/e5-mistral-7b-instruct", …)` needs no change but the address. The version's id is
the SHA-256 of the model's name and its schema.
"""

import base64
import contextlib
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5_gateway.errors import GatewayError, Json
from e5_gateway.openai_api import describe
from e5_gateway.predictions import Hook, Predictions
from e5_gateway.requests import prefer_wait, read_json
from e5_gateway.settings import Settings
from e5_gateway.store import FINAL, Row
from e5_gateway.target import Identity, Target
from e5_gateway.webhooks import END, START

OWNER = "e5"  # in answers to those who name none
HOME = "https://github.com/microsoft/unilm/tree/master/e5"
FIELDS = ("version", "input", "webhook", "webhook_events_filter", "webhook_completed", "stream")
EVENTS = ("start", "output", "logs", "completed")
PAGE = 50
MOST_ERRORS = 20
_VERSION = re.compile(r"(?:(?P<owner>[^/:]+)/(?P<name>[^/:]+)(?::|$))?(?P<id>[0-9a-f]{64})?")
_URL = re.compile(r"[\x21-\x7e]{1,2048}")
_schemas: dict[str, tuple[Json, jsonschema_rs.Validator]] = {}  # by version
_OWNER = re.compile(r"[\w.-]{1,64}", re.ASCII)


def router(target: Target, predictions: Predictions, settings: Settings) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    async def create(request: Request, owner: str | None, name: str | None) -> Response:
        identity = await target.known()
        body = await read_json(request, settings.body_bytes)
        for field in body:
            if field not in FIELDS:
                raise _invalid(field, f"unknown field; the fields are {', '.join(FIELDS)}")
        if owner is None:
            owner, name = _version(body.get("version"), identity)
        _check_model(owner, str(name), identity)
        inputs = orjson.dumps(check_inputs(body.get("input", {}), identity))
        hook, wait = _hook(body), prefer_wait(request)
        base, model = str(request.base_url).rstrip("/"), f"{owner}/{identity.model}"
        del body  # as objects its texts take ten times their bytes, which alone are kept
        row = await predictions.create(model, identity.version, inputs, base, hook, wait)
        if wait is None or row["status"] in FINAL:
            return _json(render(row), 201)
        # Both official clients (Python 1.0.7, npm 1.4.0) take any status but `starting` for the end of a wait.
        return _json(render(row | {"status": "starting"}), 202)

    @routes.post("/v1/predictions")
    async def create_by_version(request: Request) -> Response:
        return await create(request, None, None)

    @routes.post("/v1/models/{owner}/{name}/predictions")
    async def create_by_model(request: Request, owner: str, name: str) -> Response:
        return await create(request, owner, name)

    @routes.get("/v1/predictions/{prediction_id}")
    async def get(prediction_id: str) -> Response:
        return _json(render(_found(await predictions.get(prediction_id))))

    @routes.post("/v1/predictions/{prediction_id}/cancel")
    async def cancel(prediction_id: str) -> Response:
        return _json(render(_found(await predictions.cancel(prediction_id))))

    @routes.get("/v1/predictions")
    async def newest(request: Request) -> Response:
        """A page of predictions, newest first, without their inputs, outputs and logs."""
        rows = await predictions.page(_cursor(request.query_params.get("cursor")), PAGE + 1)
        following = None
        if len(rows) > PAGE:
            rows = rows[:PAGE]
            mark = f"{rows[-1]['created_at']!r} {rows[-1]['id']}".encode()
            following = str(request.url.include_query_params(cursor=base64.urlsafe_b64encode(mark).decode()))
        results = [orjson.Fragment(render(row)) for row in rows]
        return _json(orjson.dumps({"previous": None, "next": following, "results": results}))

    @routes.get("/v1/models")
    async def models(request: Request) -> Response:
        """The model: OpenAI's list in `data`, Replicate's page in `results`."""
        identity = await target.known()
        page = {"previous": None, "next": None, "results": [_model(OWNER, identity, predictions.ended)]}
        return _json(orjson.dumps({"object": "list", "data": [describe(identity)]} | page))

    @routes.get("/v1/models/{owner}/{name}")
    async def model(owner: str, name: str) -> Response:
        identity = await target.known()
        _check_model(owner, name, identity)
        return _json(orjson.dumps(_model(owner, identity, predictions.ended)))

    @routes.get("/v1/models/{owner}/{name}/versions")
    async def versions(owner: str, name: str) -> Response:
        identity = await target.known()
        _check_model(owner, name, identity)
        return _json(orjson.dumps({"previous": None, "next": None, "results": [_version_object(identity)]}))

    @routes.get("/v1/models/{owner}/{name}/versions/{version}")
    async def version(owner: str, name: str, version: str) -> Response:
        identity = await target.known()
        _check_model(owner, name, identity)
        if version != identity.version:
            raise GatewayError(404, f"{identity.model} has one version, {identity.version}")
        return _json(orjson.dumps(_version_object(identity)))

    @routes.get("/v1/webhooks/default/secret")
    async def secret() -> Response:
        return _json(orjson.dumps({"key": predictions.webhooks.key}))

    return routes


def render(row: Row) -> bytes:
    """Replicate's prediction object. Times: created_at to the millisecond, the others to the microsecond, in UTC."""
    url = f"{row['base']}/v1/predictions/{row['id']}"
    body = {
        "id": row["id"],
        "model": row["model"],
        "version": row["version"],
        "input": _raw(row.get("input")),
        "logs": row.get("logs"),
        "output": _raw(row.get("output")),
        "data_removed": False,
        "error": row["error"],
        "status": row["status"],
        "created_at": timestamp(row["created_at"], "milliseconds"),
        "started_at": timestamp(row["started_at"]),
        "completed_at": timestamp(row["completed_at"]),
        "urls": {"get": url, "cancel": f"{url}/cancel"},
        "metrics": _raw(row["metrics"]) or {},
    }
    return orjson.dumps(body)


def timestamp(seconds: float | None, precision: str = "microseconds") -> str | None:
    """Unix time → 2026-11-22T20:10:17.883156Z"""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def check_inputs(given: object, identity: Identity) -> Json:
    """What the model's schema takes; null where it may be null is the same as nothing. Raises GatewayError 422."""
    if not isinstance(given, dict):
        raise _invalid("input", "must be an object")
    properties, validator = _schema(identity)
    kept = {k: v for k, v in given.items() if not (v is None and properties.get(k, {}).get("nullable"))}
    if wrong := _first_errors(kept, properties, validator):
        detail = "".join(f"- {one['field']}: {one['description']}\n" for one in wrong)
        raise GatewayError(422, detail, invalid_fields=wrong)
    return kept


def _schema(identity: Identity) -> tuple[Json, jsonschema_rs.Validator]:
    """The inputs' properties and a validator that refuses others. (The server drops unknown inputs without a word.)"""
    if identity.version not in _schemas:
        _schemas.clear()  # one model is served at a time
        schemas = identity.schema["components"]["schemas"]
        schema = schemas["Input"] | {"additionalProperties": False, "components": {"schemas": schemas}}
        _schemas[identity.version] = schemas["Input"]["properties"], jsonschema_rs.validator_for(schema)
    return _schemas[identity.version]


def _first_errors(inputs: Json, properties: Json, validator: jsonschema_rs.Validator) -> list[Json]:
    """What is wrong, once an input. (All errors of a long list of numbers take jsonschema_rs 0.60 half a minute.)"""
    wrong = []
    for given in ({name: value} for name, value in inputs.items()):
        try:
            validator.validate(given)
        except jsonschema_rs.ValidationError as error:
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            kind = str(error.schema_path[-1])
            message = error.message if len(error.message) < 200 else f"violates `{kind}` of the model's schema"
            if kind == "additionalProperties":
                message += f"; the inputs are {', '.join(properties)}"
            wrong.append({"type": kind, "field": f"input{path}", "description": message})
            if len(wrong) == MOST_ERRORS:
                break
    return wrong


def _check_model(owner: str, name: str, identity: Identity) -> None:
    if name != identity.model or not _OWNER.fullmatch(owner):
        raise GatewayError(404, f"no model is called {owner}/{name} here: there is {OWNER}/{identity.model}")


def _version(given: object, identity: Identity) -> tuple[str, str]:
    """Owner and name of `version`: the version's id, owner/name:id or owner/name. Raises GatewayError 422."""
    found = _VERSION.fullmatch(given) if isinstance(given, str) and given else None
    if found is None or found["id"] not in (None, identity.version):
        message = f"the version does not exist here: pass {identity.version}, or {OWNER}/{identity.model}"
        raise _invalid("version", message)
    return found["owner"] or OWNER, found["name"] or identity.model


def _hook(body: Json) -> Hook | None:
    """An output and its logs come with the end, at once: `output` and `logs` are told with `completed`."""
    only_end = body.get("webhook") is None
    url, field = (body.get("webhook_completed"), "webhook_completed") if only_end else (body["webhook"], "webhook")
    if url is None:
        return None
    known = False
    with contextlib.suppress(ValueError):
        parts = urlsplit(url) if isinstance(url, str) and _URL.fullmatch(url) else None
        known = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    if not known:
        raise _invalid(field, "must be the URL of a web server, https://… or http://…")
    wanted = body.get("webhook_events_filter")
    wanted = list(EVENTS) if wanted is None else wanted
    if not isinstance(wanted, list) or any(event not in EVENTS for event in wanted):
        raise _invalid("webhook_events_filter", f"must be a list of some of {', '.join(EVENTS)}")
    ending = [END] if only_end or set(wanted) - {START} else []
    return Hook(url, tuple(([START] if START in wanted and not only_end else []) + ending))


def _cursor(given: str | None) -> tuple[float, str] | None:
    if given is None:
        return None
    try:
        when, _, name = base64.urlsafe_b64decode(given).decode().partition(" ")
        return float(when), name
    except ValueError:
        raise GatewayError(400, "`cursor` is none that this API gave") from None


def _model(owner: str, identity: Identity, runs: int) -> Json:
    facts = identity.facts
    what = f", {facts.languages}, {facts.license}" if facts else ""
    return {
        "url": HOME,
        "owner": owner,
        "name": identity.model,
        "description": f"Text embeddings of {identity.dimensions} dimensions{what}",
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
    created = timestamp(identity.since)
    return {
        "id": identity.version,
        "created_at": created,
        "cog_version": identity.coglet,
        "openapi_schema": identity.schema,
    }


def _found(row: Row | None) -> Row:
    if row is None:
        raise GatewayError(404, "no such prediction: it never was, or ended longer ago than predictions are kept")
    return row


def _invalid(field: str, message: str) -> GatewayError:
    described = {"type": "invalid", "field": field, "description": message}
    return GatewayError(422, f"- {field}: {message}\n", invalid_fields=[described])


def _raw(value: bytes | None) -> Any:
    return None if value is None else orjson.Fragment(value)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
