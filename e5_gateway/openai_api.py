"""OpenAI's embeddings API: POST /v1/embeddings, GET /v1/models.

OpenAI's API cannot say whether a text is a query or a document, nor name the task. The extra fields `input_type` and
`task` do, or a suffix of the model's name: `NAME:query`, `NAME:document`, or `NAME:query:NQ` with the name of a trained
task. The default is a document. Vectors have length 1, as OpenAI's do, unless the extra field `normalize` is false.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5 import InputError, tasks
from e5_gateway.errors import ErrorFormat, GatewayError, Json, prediction_error, shorten
from e5_gateway.metrics import Metrics
from e5_gateway.requests import cancel_on_disconnect, read_json
from e5_gateway.settings import GatewaySettings
from e5_gateway.target import Identity, Target, new_id

FIELDS = ("input", "model", "encoding_format", "dimensions", "user", "input_type", "task", "normalize")
ENCODING_FORMATS, INPUT_TYPES = ("float", "base64"), ("query", "document")
ERROR_TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
TOKEN_IDS = (
    "`input` has token ids, which belong to another model's tokenizer: send the texts themselves "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)
_PREDICTION_INPUT = re.compile(r"`(?:queries|documents)(\[\d+\])?`")


@dataclass(frozen=True)
class ResponseFormat:
    """`model`: the name that the request used. `single`: `input` is a string, not a list."""

    model: str
    base64: bool
    single: bool


@dataclass(frozen=True)
class EmbeddingsRequest:
    """A validated request. `task` None: the server's default."""

    texts: list[str]
    query: bool
    task: str | None
    normalize: bool
    response: ResponseFormat

    def prediction(self) -> bytes:
        """The target's prediction request, as JSON. It always asks for base64, a quarter of the bytes of floats."""
        inputs: Json = {"queries" if self.query else "documents": self.texts, "normalize": self.normalize}
        inputs |= {"encoding_format": "base64"} | ({"task": self.task} if self.task is not None else {})
        return orjson.dumps({"id": new_id(), "input": inputs})


def router(
    target: Target, settings: GatewaySettings, metrics: Metrics, replicate_list: Callable[[Identity], Json]
) -> APIRouter:
    """`replicate_list`: Replicate's fields of GET /v1/models, a path that both APIs have."""
    routes = APIRouter()

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        identity = await target.require_identity()
        response_format, content = await read(request, identity)
        prediction = await cancel_on_disconnect(request, target.predict(content, identity.model))
        if prediction["status"] != "succeeded":
            raise rename_input(prediction_error(prediction), response_format.single)
        metrics.count_embedded("openai", prediction["metrics"])
        return Response(render(response_format, prediction), media_type="application/json")

    async def read(request: Request, identity: Identity) -> tuple[ResponseFormat, bytes]:
        """A function of its own frees the parsed texts while the request waits: they take ten times their bytes."""
        body = await read_json(request, settings.max_body_bytes)
        checked = parse(body, identity, settings.max_answer_numbers)
        return checked.response, checked.prediction()

    @routes.get("/v1/models")
    async def models() -> Response:
        """OpenAI's list in `data`, Replicate's page in `results`."""
        identity = await target.require_identity()
        return _json({"object": "list", "data": [describe(identity)]} | replicate_list(identity))

    @routes.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        identity = await target.require_identity()
        parse_model(name, identity)
        return _json(describe(identity) | {"id": name})

    return routes


def error_body(error: GatewayError) -> Json:
    """OpenAI's error object: {"error": {message, type, param, code}}."""
    error_type = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": error_type, "param": error.param, "code": error.code}}


ERRORS = ErrorFormat(re.compile(r"/v1/(?:embeddings|models)[^/]*(?:/[^/]*)?\Z"), error_body)
"""Replicate's API has the deeper paths, such as /v1/models/{owner}/{name}."""


def parse(body: Json, identity: Identity, max_numbers: int) -> EmbeddingsRequest:
    """Validate a request. A null field counts as missing. Raises GatewayError, with the field in `param`.

    `max_numbers`: JSON numbers that the answer may have.
    """
    body = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name not in FIELDS:
            fields = ", ".join(FIELDS)
            raise _invalid(f"`{shorten(name)}` is not a field of this API: the fields are {fields}", name)
    for name in ("input", "model"):
        if name not in body:
            raise _invalid(f"`{name}` is missing", name)
    texts, single = _texts(body["input"])
    options = parse_model(body["model"], identity)
    for name, kind in (("input_type", str), ("task", str), ("normalize", bool)):
        value = body.get(name)
        if value is not None and not isinstance(value, kind):
            raise _invalid(f"`{name}` must be a {'string' if kind is str else 'boolean'}", name)
        if value is not None and options.setdefault(name, value) != value:
            raise _invalid(f"`{name}` contradicts the suffix of the model's name: give one of them", name)
    task = options.get("task")
    input_type = options.get("input_type", "document" if task is None else "query")
    if input_type not in INPUT_TYPES:
        raise _invalid(f"`input_type` is {_quoted(input_type)}: choose one of {', '.join(INPUT_TYPES)}", "input_type")
    if input_type == "document" and task is not None:
        raise _invalid("`task` goes with queries alone: set `input_type` to query, or leave `task` out", "task")
    encoding = body.get("encoding_format", "float")
    if encoding not in ENCODING_FORMATS:
        choices = ", ".join(ENCODING_FORMATS)
        raise _invalid(f"`encoding_format` is {_quoted(encoding)}: choose one of {choices}", "encoding_format")
    numbers = len(texts) * identity.dimensions
    if encoding == "float" and numbers > max_numbers:
        cause = f"the answer would have {numbers:,} numbers, more than {max_numbers:,}"
        raise _invalid(f"{cause}: send fewer texts, or ask for `encoding_format` base64", "encoding_format")
    dimensions = body.get("dimensions", identity.dimensions)
    if type(dimensions) is not int or dimensions != identity.dimensions:
        cure = f"the vectors of {identity.model} have {identity.dimensions} and cannot be cut: leave it out"
        raise _invalid(f"`dimensions` is {_quoted(dimensions)}; {cure}", "dimensions")
    response_format = ResponseFormat(body["model"], encoding == "base64", single)
    return EmbeddingsRequest(texts, input_type == "query", task, options.get("normalize", True), response_format)


def parse_model(name: object, identity: Identity) -> dict[str, Any]:
    """Parse a model's name: the `input_type` and `task` of its suffix. Raises GatewayError 404."""
    base, _, suffix = name.partition(":") if isinstance(name, str) else ("", "", "")
    input_type, _, task = suffix.partition(":")
    if base == identity.model and input_type in ("", *INPUT_TYPES) and not (task and input_type != "query"):
        options: dict[str, Any] = {"input_type": input_type} if input_type else {}
        try:
            return options | ({"task": tasks.instruction(task)} if task else {})
        except InputError as error:
            message = f"model {_quoted(name)}: {error}"
            raise GatewayError(404, message, "model_not_found", "model") from None
    known = ", ".join(identity.model + suffix for suffix in ("", ":query", ":document", ":query:TASK"))
    raise GatewayError(404, f"no model is called {_quoted(name)} here: there are {known}", "model_not_found", "model")


def render(response_format: ResponseFormat, prediction: Json) -> bytes:
    """Write the answer from a prediction in base64. Numbers have the fewest digits that give the float32 back."""
    vectors: list[Any] = prediction["output"]["embeddings_base64"]
    if not response_format.base64:
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
    tokens = prediction["metrics"]["input_tokens"]
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": response_format.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def describe(identity: Identity) -> Json:
    """OpenAI's model object, with the facts of the catalogue."""
    model: Json = {"id": identity.model, "object": "model", "created": int(identity.first_seen), "owned_by": "e5"}
    model["dimensions"] = identity.dimensions
    entry = identity.catalog_entry
    if entry is not None:
        model |= {"max_tokens": entry.max_tokens, "prompt": entry.prompt, "languages": entry.languages}
    return model


def rename_input(error: GatewayError, single: bool) -> GatewayError:
    """Name this API's field in a prediction's error: its `documents[3]` is `input[3]` here."""
    error.message, count = _PREDICTION_INPUT.subn("`input`" if single else r"`input\1`", error.message)
    if error.status == 400:
        error.param = "task" if "`task`" in error.message and not count else "input"
    return error


def _texts(value: object) -> tuple[list[str], bool]:
    """The texts of `input`, and whether it is a single string."""
    if isinstance(value, str):
        return [value], True
    if not isinstance(value, list):
        raise _invalid("`input` must be a string or a list of strings", "input")
    if not value:
        raise _invalid("`input` is an empty list: send at least one text", "input")
    for index, text in enumerate(value):
        if type(text) is int or (isinstance(text, list) and all(type(token) is int for token in text)):
            raise _invalid(TOKEN_IDS, "input")
        if not isinstance(text, str):
            raise _invalid(f"`input[{index}]` is not a string", "input")
    return value, False


def _quoted(value: object) -> str:
    """A value for an error message, in at most 60 characters."""
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"


def _invalid(message: str, param: str) -> GatewayError:
    return GatewayError(400, message, None, param)


def _json(body: Json) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
