"""This model's OpenAPI schema, identical to the one that Cog's build writes into the image.

Web forms are generated from it, and Cog's server validates requests with it. A server started without Cog's build reads
it from `.cog/openapi_schema.json`.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

from e5_cog import static_schema
from e5_cog.repository import ROOT
from e5_cog.static_schema import Json, Signature, SignatureError

SCHEMA = ROOT / ".cog" / "openapi_schema.json"


def openapi(signature: Signature, version: str | None = None) -> Json:
    """The whole schema. `version`: Cog's version, which is part of it; by default the installed one."""
    inputs: Json = {"properties": signature.inputs, "title": "Input", "type": "object"}
    if signature.required:
        inputs["required"] = list(signature.required)
    schemas = {"Input": inputs, "Output": signature.output, **signature.enums, **_fixed_schemas()}
    info = {"title": "Cog", "version": version or importlib.metadata.version("cog")}
    return {"components": {"schemas": schemas}, "info": info, "openapi": "3.0.2", "paths": _paths()}


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp ignores the umask and gives 0600
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _fixed_schemas() -> Json:
    """The components that every model has."""
    request = {"id": _field("Id"), "input": _ref("Input")}
    times = {name: _field(title) | {"format": "date-time"} for name, title in _TIMES.items()}
    texts = {name: _field(name.capitalize()) for name in ("error", "id", "logs", "status", "version")}
    response = {"input": _ref("Input"), "output": _ref("Output"), "metrics": _field("Metrics", "object")}
    location = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    error = {
        "loc": _field("Location", "array") | {"items": location},
        "msg": _field("Message"),
        "type": _field("Error Type"),
    }
    detail = _field("Detail", "array") | {"items": _ref("ValidationError")}
    return {
        "PredictionRequest": _object("PredictionRequest", request),
        "PredictionResponse": _object("PredictionResponse", times | texts | response),
        "Status": _field("Status")
        | {
            "description": "An enumeration.",
            "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
        },
        "HTTPValidationError": _object("HTTPValidationError", {"detail": detail}),
        "ValidationError": _object("ValidationError", error) | {"required": ["loc", "msg", "type"]},
    }


_TIMES = {"created_at": "Created At", "started_at": "Started At", "completed_at": "Completed At"}


def _paths() -> Json:
    """The endpoints, which every model has."""
    run = _operation("Predict", "predict_predictions_post", _ref("PredictionResponse"), can_be_invalid=True)
    run["description"] = "Run a single prediction on the model"
    run["requestBody"] = {"content": {"application/json": {"schema": _ref("PredictionRequest")}}}
    cancel = _operation("Cancel", "cancel_predictions__prediction_id__cancel_post", {}, can_be_invalid=True)
    cancel["parameters"] = [
        {"in": "path", "name": "prediction_id", "required": True, "schema": _field("Prediction Id")}
    ]
    return {
        "/": {"get": _operation("Root", "root__get", {})},
        "/health-check": {"get": _operation("Healthcheck", "healthcheck_health_check_get", {})},
        "/predictions": {"post": run},
        "/predictions/{prediction_id}/cancel": {"post": cancel},
    }


def _operation(summary: str, operation: str, schema: Json, *, can_be_invalid: bool = False) -> Json:
    responses = {"200": _response("Successful Response", schema)}
    if can_be_invalid:
        responses["422"] = _response("Validation Error", _ref("HTTPValidationError"))
    return {"operationId": operation, "responses": responses, "summary": summary}


def _response(description: str, schema: Json) -> Json:
    return {"content": {"application/json": {"schema": schema}}, "description": description}


def _object(title: str, properties: Json) -> Json:
    return {"properties": properties, "title": title, "type": "object"}


def _field(title: str, kind: str = "string") -> Json:
    return {"title": title, "type": kind}


def _ref(component: str) -> Json:
    return {"$ref": f"#/components/schemas/{component}"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The OpenAPI schema that Cog derives from predict.py.")
    parser.add_argument("--write", action="store_true", help="write .cog/openapi_schema.json instead of printing")
    arguments = parser.parse_args(argv)
    try:
        schema = openapi(static_schema.read(ROOT / "predict.py"))
    except SignatureError as error:
        print(error, file=sys.stderr)
        return 1
    text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if arguments.write:
        write_atomically(SCHEMA, text)
    else:
        sys.stdout.write(text)
    return 0
