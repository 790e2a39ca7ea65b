"""What the embedding routes of all APIs share: field checks, model names, the prediction to run, and its vectors."""

import base64
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request

from e5 import InputError, tasks
from e5.vectors import Vectors
from e5_gateway.errors import GatewayError, Json, prediction_error, shorten
from e5_gateway.metrics import Metrics
from e5_gateway.requests import cancel_on_disconnect
from e5_gateway.target import Identity, new_id
from e5_gateway.targets import Targets

INPUT_TYPES = {
    "query": "query",
    "document": "document",
    "passage": "document",
    "search_query": "query",
    "search_document": "document",
}
"""Values of `input_type`, those of NVIDIA and Cohere included → what the text is."""
SUFFIXES = ("-query", "-passage", "-document")
"""Of a model's name, as NVIDIA's API has them. They mean the same as `:query` and so on."""
TRUNCATED_HEADER = "X-Embedding-Truncated"
"""In an answer, how many of its texts were cut. Missing if none was."""
_PREDICTION_INPUT = re.compile(r"`(?:queries|documents)(\[\d+\])?`")


def prediction_body(**inputs: object) -> bytes:
    """The target's prediction request, as JSON. Inputs that are None are left out."""
    given = {name: value for name, value in inputs.items() if value is not None}
    return orjson.dumps({"id": new_id(), "input": given})


async def run(request: Request, targets: Targets, metrics: Metrics, api: str, model: str, body: bytes) -> Json:
    """Run a prediction and return it; it is cancelled if the client disconnects. `api`: the label of the metrics.

    Raises GatewayError, also if the prediction failed.
    """
    prediction = await cancel_on_disconnect(request, targets.predict(body, model))
    if prediction["status"] != "succeeded":
        raise prediction_error(prediction)
    metrics.count_embedded(api, prediction["metrics"])
    return prediction


def vectors_of(prediction: Json) -> Vectors:
    """The vectors of a prediction in base64: float32 [N, D]."""
    rows = prediction["output"]["embeddings_base64"]
    return np.frombuffer(b"".join(map(base64.b64decode, rows)), "<f4").reshape(len(rows), -1)


def truncation(prediction: Json) -> tuple[list[int], dict[str, str]]:
    """Indices of the texts that were cut, and the headers that say so."""
    indices: list[int] = prediction["output"].get("truncated") or []
    return indices, {TRUNCATED_HEADER: str(len(indices))} if indices else {}


def parse_model(name: object, identity: Identity) -> dict[str, Any]:
    """Parse a model's name: the `input_type` and `task` of its suffix. Raises GatewayError 404."""
    base, _, suffix = name.partition(":") if isinstance(name, str) else ("", "", "")
    for ending in SUFFIXES:
        if base == identity.model + ending and not suffix:
            base, suffix = identity.model, ending[1:]
    input_type, _, task = suffix.partition(":")
    kind = INPUT_TYPES.get(input_type)
    if base == identity.model and (kind or not suffix) and not (task and kind != "query"):
        options: dict[str, Any] = {"input_type": kind} if kind else {}
        try:
            return options | ({"task": tasks.instruction(task)} if task else {})
        except InputError as error:
            message = f"model {quoted(name)}: {error}"
            raise GatewayError(404, message, "model_not_found", "model") from None
    known = ", ".join(identity.model + suffix for suffix in ("", ":query", ":document", ":query:TASK"))
    raise GatewayError(404, f"no model is called {quoted(name)} here: there are {known}", "model_not_found", "model")


def parse_kind(
    body: Json, identity: Identity, input_types: Mapping[str, str] = INPUT_TYPES
) -> tuple[str | None, str | None]:
    """What the texts are ("query" or "document") and their task, each None if the request does not say it.

    Both come from a field or from the suffix of `model`. Raises GatewayError, also if these contradict each other.
    """
    options = parse_model(body["model"], identity)
    task = body.get("task")
    if not isinstance(task, str | None):
        raise invalid("`task` must be a string", "task")
    input_type = input_types.get(choice(body, "input_type", input_types, ""))
    for name, value in (("input_type", input_type), ("task", task)):
        if value is not None and options.setdefault(name, value) != value:
            raise invalid(f"`{name}` contradicts the suffix of the model's name: give one of them", name)
    if options.get("input_type") == "document" and "task" in options:
        raise invalid("`task` goes with queries only: set `input_type` to query, or leave `task` out", "task")
    return options.get("input_type"), options.get("task")


def given_fields(body: Json, fields: Collection[str], *required: str) -> Json:
    """The fields of a request that are not null. Raises GatewayError for an unknown one and for a missing one."""
    for name in body:
        if name not in fields:
            raise invalid(f"`{shorten(name)}` is not a field of this API: the fields are {', '.join(fields)}", name)
    body = {name: value for name, value in body.items() if value is not None}
    for name in required:
        if name not in body:
            raise invalid(f"`{name}` is missing", name)
    return body


def choice(body: Json, name: str, choices: Collection[str], default: str) -> str:
    """A field's value, which must be one of the choices; `default` if it is missing. Raises GatewayError."""
    if name not in body:
        return default
    value = body[name]
    if not isinstance(value, str) or value not in choices:
        raise invalid(f"`{name}` is {quoted(value)}: choose one of {', '.join(choices)}", name)
    return value


def check_dimensions(body: Json, name: str, identity: Identity, status: int = 400) -> None:
    """Refuse dimensions other than the model's. `name`: the field that asks for them. Raises GatewayError."""
    dimensions = body.get(name, identity.dimensions)
    if type(dimensions) is not int or dimensions != identity.dimensions:
        cure = f"the vectors of {identity.model} have {identity.dimensions} and cannot be cut: leave it out"
        raise GatewayError(status, f"`{name}` is {quoted(dimensions)}; {cure}", None, name)


def invalid(message: str, param: str) -> GatewayError:
    return GatewayError(400, message, None, param)


def rename_texts(error: GatewayError, name: str, *, single: bool = False) -> GatewayError:
    """Name an API's own field in a prediction's error: its `documents[3]` is `input[3]` for the name "input".

    `single`: the field has one text and no list.
    """
    error.message, count = _PREDICTION_INPUT.subn(f"`{name}`" if single else rf"`{name}\1`", error.message)
    if error.status == 400:
        error.param = "task" if "`task`" in error.message and not count else name
    return error


def quoted(value: object) -> str:
    """A value for an error message, in at most 60 characters."""
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"
