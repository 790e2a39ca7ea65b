"""OpenAI's embeddings API: POST /v1/embeddings, GET /v1/models.

What it has no word for – whether a text is a query or a document, and the task – comes as the extra fields
`input_type` and `task`, or as a suffix of the model's name: `NAME:query`, `NAME:document`, `NAME:query:NQ` with the
name of a trained task. Without either a text is a document. Vectors have length 1, as OpenAI's have, unless the extra
field `normalize` is false.
"""

import base64
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5 import InputError, tasks
from e5.limits import Limits
from e5_gateway.errors import GatewayError, Json, failed
from e5_gateway.metrics import Metrics
from e5_gateway.requests import read_json, unless_gone
from e5_gateway.settings import Settings
from e5_gateway.target import Identity, Target, new_id

FIELDS = ("input", "model", "encoding_format", "dimensions", "user", "input_type", "task", "normalize")
FORMATS, INPUT_TYPES = ("float", "base64"), ("query", "document")
MOST_NUMBERS = Limits.answer_numbers  # what the server itself writes at most: it keeps the event loop busy
TOKENS = (
    "`input` has token ids, which belong to another model's tokenizer: send the texts themselves "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)
_NAMED = re.compile(r"`(?:queries|documents)(\[\d+\])?`")


@dataclass(frozen=True)
class Wanted:
    """The shape of an answer."""

    model: str
    base64: bool
    single: bool


@dataclass(frozen=True)
class Embeddings:
    """One checked request. `task` is None where the server's default holds."""

    texts: list[str]
    query: bool
    task: str | None
    normalize: bool
    wanted: Wanted

    def prediction(self) -> bytes:
        """The same as a prediction of the target. base64: a quarter of the bytes, whatever the client wants."""
        inputs: Json = {"queries" if self.query else "documents": self.texts, "normalize": self.normalize}
        inputs |= {"encoding_format": "base64"} | ({"task": self.task} if self.task is not None else {})
        return orjson.dumps({"id": new_id(), "input": inputs})


def router(target: Target, settings: Settings, metrics: Metrics) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        identity = await target.known()
        wanted, content = await read(request, identity)
        found = await unless_gone(request, target.predict(content, identity.model))
        if found["status"] != "succeeded":
            raise as_input(failed(found), wanted.single)
        metrics.embedded("openai", found["metrics"])
        return Response(render(wanted, found), media_type="application/json")

    async def read(request: Request, identity: Identity) -> tuple[Wanted, bytes]:
        """Texts as Python's objects take ten times their bytes: while a request waits, only the bytes are kept."""
        embeddings = parse(await read_json(request, settings.body_bytes), identity)
        return embeddings.wanted, embeddings.prediction()

    @routes.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        identity = await target.known()
        check_model(name, identity)
        return _json(describe(identity) | {"id": name})

    return routes


def parse(body: Json, identity: Identity) -> Embeddings:
    """Check a request's fields. null is the same as nothing. Raises GatewayError, with the field in `param`."""
    body = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name not in FIELDS:
            raise _wrong(f"`{name}` is not a field of this API: the fields are {', '.join(FIELDS)}", name)
    for name in ("input", "model"):
        if name not in body:
            raise _wrong(f"`{name}` is missing", name)
    texts, single = _texts(body["input"])
    given = check_model(body["model"], identity)
    for name, kind in (("input_type", str), ("task", str), ("normalize", bool)):
        value = body.get(name)
        if value is not None and not isinstance(value, kind):
            raise _wrong(f"`{name}` must be a {'string' if kind is str else 'boolean'}", name)
        if value is not None and given.setdefault(name, value) != value:
            raise _wrong(f"`{name}` contradicts the suffix of the model's name: give one of them", name)
    task = given.get("task")
    input_type = given.get("input_type", "document" if task is None else "query")
    if input_type not in INPUT_TYPES:
        raise _wrong(f"`input_type` is {_shown(input_type)}: choose one of {', '.join(INPUT_TYPES)}", "input_type")
    if input_type == "document" and task is not None:
        raise _wrong("`task` goes with queries alone: set `input_type` to query, or leave `task` out", "task")
    wanted, numbers = body.get("encoding_format", "float"), len(texts) * identity.dimensions
    if wanted not in FORMATS:
        raise _wrong(f"`encoding_format` is {_shown(wanted)}: choose one of {', '.join(FORMATS)}", "encoding_format")
    if wanted == "float" and numbers > MOST_NUMBERS:
        message = f"the answer would have {numbers:,} numbers, more than {MOST_NUMBERS:,}: send fewer texts, or ask for"
        raise _wrong(f"{message} `encoding_format` base64", "encoding_format")
    dimensions = body.get("dimensions", identity.dimensions)
    if type(dimensions) is not int or dimensions != identity.dimensions:
        fixed = f"the vectors of {identity.model} have {identity.dimensions} and cannot be cut: leave it out"
        raise _wrong(f"`dimensions` is {_shown(dimensions)}; {fixed}", "dimensions")
    normalize = given.get("normalize", True)
    shape = Wanted(body["model"], wanted == "base64", single)
    return Embeddings(texts, input_type == "query", task, normalize, shape)


def check_model(name: object, identity: Identity) -> dict[str, Any]:
    """What the suffix of a model's name says: `input_type` and `task`. Raises GatewayError 404."""
    base, _, suffix = name.partition(":") if isinstance(name, str) else ("", "", "")
    kind, _, task = suffix.partition(":")
    if base == identity.model and kind in ("", *INPUT_TYPES) and not (task and kind != "query"):
        found: dict[str, Any] = {"input_type": kind} if kind else {}
        try:
            return found | ({"task": tasks.instruction(task)} if task else {})
        except InputError as error:
            raise GatewayError(404, f"model {_shown(name)}: {error}", "model_not_found", "model") from None
    known = ", ".join(identity.model + suffix for suffix in ("", ":query", ":document", ":query:TASK"))
    raise GatewayError(404, f"no model is called {_shown(name)} here: there are {known}", "model_not_found", "model")


def render(wanted: Wanted, prediction: Json) -> bytes:
    """The answer, from a prediction in base64. Numbers have the fewest digits that give the float32 back."""
    vectors: list[Any] = prediction["output"]["embeddings_base64"]
    if not wanted.base64:
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
    tokens = prediction["metrics"]["input_tokens"]
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": wanted.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def describe(identity: Identity) -> Json:
    """OpenAI's model object, and what is worth knowing of this one."""
    facts = identity.facts
    known: Json = {"id": identity.model, "object": "model", "created": int(identity.since), "owned_by": "e5"}
    known |= {"dimensions": identity.dimensions}
    if facts is not None:
        known |= {"max_tokens": facts.max_tokens, "prompt": facts.prompt, "languages": facts.languages}
    return known


def as_input(error: GatewayError, single: bool) -> GatewayError:
    """The same refusal in this API's words: `documents[3]` of the prediction is `input[3]` here."""
    error.message, count = _NAMED.subn("`input`" if single else r"`input\1`", error.message)
    if error.status == 400:
        error.param = "task" if "`task`" in error.message and not count else "input"
    return error


def _texts(given: object) -> tuple[list[str], bool]:
    if isinstance(given, str):
        return [given], True
    if not isinstance(given, list):
        raise _wrong("`input` must be a string or a list of strings", "input")
    if not given:
        raise _wrong("`input` is an empty list: send at least one text", "input")
    for index, text in enumerate(given):
        if type(text) is int or (isinstance(text, list) and all(type(one) is int for one in text)):
            raise _wrong(TOKENS, "input")
        if not isinstance(text, str):
            raise _wrong(f"`input[{index}]` is not a string", "input")
    return given, False


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"


def _wrong(message: str, param: str) -> GatewayError:
    return GatewayError(400, message, None, param)


def _json(body: Json) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
