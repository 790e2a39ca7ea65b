"""OpenAI's embeddings API: POST /v1/embeddings, GET /v1/models.

OpenAI's API cannot say whether a text is a query or a document, nor name the task. The extra fields `input_type` and
`task` do, or a suffix of the model's name: `NAME:query`, `NAME:document`, or `NAME:query:NQ` with the name of a trained
task. The default is a document. Vectors have length 1, as OpenAI's do, unless the extra field `normalize` is false.

`encoding_format` also takes float16, int8 and ubinary: bytes in base64, and for int8 a scale with each vector. If texts
were cut, the answer has their indices in `truncated`, and a header.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5.inputs import LongTexts
from e5_gateway import embedding
from e5_gateway.embedding import (
    check_dimensions,
    choice,
    given_fields,
    invalid,
    parse_kind,
    parse_model,
    prediction_body,
)
from e5_gateway.errors import ErrorFormat, GatewayError, Json
from e5_gateway.metrics import Metrics
from e5_gateway.requests import read_json
from e5_gateway.settings import GatewaySettings
from e5_gateway.target import Identity
from e5_gateway.targets import Targets

FIELDS = (
    "input",
    "model",
    "encoding_format",
    "dimensions",
    "user",
    "input_type",
    "task",
    "normalize",
    "long_texts",
)
ENCODING_FORMATS = ("float", "base64", "float16", "int8", "ubinary")
ERROR_TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
TOKEN_IDS = (
    "`input` has token ids, which belong to another model's tokenizer: send the texts themselves "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)


@dataclass(frozen=True)
class ResponseFormat:
    """`model`: the name that the request used. `encoding`: one of ENCODING_FORMATS. `single`: `input` is a string."""

    model: str
    encoding: str
    single: bool


@dataclass(frozen=True)
class EmbeddingsRequest:
    """A validated request. `task` None, `long_texts` "": the server's defaults."""

    texts: list[str]
    query: bool
    task: str | None
    normalize: bool
    long_texts: str
    response: ResponseFormat

    def prediction(self) -> bytes:
        """The target's prediction request, as JSON. For floats it asks for base64, a quarter of the bytes."""
        return prediction_body(
            **{"queries" if self.query else "documents": self.texts},
            task=self.task,
            normalize=self.normalize,
            encoding_format="base64" if self.response.encoding == "float" else self.response.encoding,
            long_texts=self.long_texts or None,
        )


def router(
    targets: Targets, settings: GatewaySettings, metrics: Metrics, replicate_list: Callable[[Identity], Json]
) -> APIRouter:
    """`replicate_list`: Replicate's fields of GET /v1/models, a path that both APIs have."""
    routes = APIRouter()

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        identity = await targets.require_identity()
        response_format, content = await read(request, identity)
        try:
            prediction = await embedding.run(request, targets, metrics, "openai", identity.model, content)
        except GatewayError as error:
            raise embedding.rename_texts(error, "input", single=response_format.single) from None
        headers = embedding.truncation(prediction)[1]
        return Response(render(response_format, prediction), headers=headers, media_type="application/json")

    async def read(request: Request, identity: Identity) -> tuple[ResponseFormat, bytes]:
        """A function of its own frees the parsed texts while the request waits: they take ten times their bytes."""
        body = await read_json(request, settings.max_body_bytes)
        checked = parse(body, identity, settings.max_answer_numbers)
        return checked.response, checked.prediction()

    @routes.get("/v1/models")
    async def models() -> Response:
        """OpenAI's list in `data`, Replicate's page in `results`."""
        identity = await targets.require_identity()
        return _json({"object": "list", "data": [describe(identity)]} | replicate_list(identity))

    @routes.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        identity = await targets.require_identity()
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
    body = given_fields(body, FIELDS, "input", "model")
    texts, single = _texts(body["input"])
    input_type, task = parse_kind(body, identity)
    normalize = body.get("normalize", True)
    if not isinstance(normalize, bool):
        raise invalid("`normalize` must be a boolean", "normalize")
    encoding = choice(body, "encoding_format", ENCODING_FORMATS, "float")
    long_texts = choice(body, "long_texts", get_args(LongTexts), "")
    numbers = len(texts) * identity.dimensions
    if encoding == "float" and numbers > max_numbers:
        cause = f"the answer would have {numbers:,} numbers, more than {max_numbers:,}"
        raise invalid(f"{cause}: send fewer texts, or ask for `encoding_format` base64", "encoding_format")
    check_dimensions(body, "dimensions", identity)
    return EmbeddingsRequest(
        texts,
        input_type == "query" or task is not None,
        task,
        normalize,
        long_texts,
        ResponseFormat(body["model"], encoding, single),
    )


def render(response_format: ResponseFormat, prediction: Json) -> bytes:
    """Write the answer. Numbers have the fewest digits that give the float32 back."""
    tokens = prediction["metrics"]["input_tokens"]
    truncated, _ = embedding.truncation(prediction)
    output = prediction["output"]
    floats = response_format.encoding == "float"
    values = embedding.vectors_of(prediction) if floats else output["embeddings_base64"]
    items: list[Json] = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
    for item, scale in zip(items, output.get("scales") or (), strict=False):
        item["scale"] = scale
    body = {
        "object": "list",
        "data": items,
        "model": response_format.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(body | ({"truncated": truncated} if truncated else {}), option=orjson.OPT_SERIALIZE_NUMPY)


def describe(identity: Identity) -> Json:
    """OpenAI's model object, with the facts of the catalogue."""
    model: Json = {"id": identity.model, "object": "model", "created": int(identity.first_seen), "owned_by": "e5"}
    model |= {"dimensions": identity.dimensions, "max_tokens": identity.max_tokens}
    entry = identity.catalog_entry
    if entry is not None:
        model |= {"prompt": entry.prompt, "languages": entry.languages}
    return model


def _texts(value: object) -> tuple[list[str], bool]:
    """The texts of `input`, and whether it is a single string."""
    if isinstance(value, str):
        return [value], True
    if not isinstance(value, list):
        raise invalid("`input` must be a string or a list of strings", "input")
    if not value:
        raise invalid("`input` is an empty list: send at least one text", "input")
    for index, text in enumerate(value):
        if type(text) is int or (isinstance(text, list) and all(type(token) is int for token in text)):
            raise invalid(TOKEN_IDS, "input")
        if not isinstance(text, str):
            raise invalid(f"`input[{index}]` is not a string", "input")
    return value, False


def _json(body: Json) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
