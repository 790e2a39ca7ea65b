"""text-embeddings-inference's API: POST /embed, /similarity and /tokenize, GET /info, and POST / as huggingface_hub's
InferenceClient uses it.

Fields, statuses and errors follow router/src/http of text-embeddings-inference at 0d124dc (2026-07-24), whose statuses
differ from its own documentation: too many texts are 422, not 413. What differs here: an unknown field is refused, not
ignored, and so are empty texts and token ids; answers have none of the `x-compute-…` headers.

/tokenize returns the tokens that the model reads, so with the prompt and cut to its length, without positions.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import e5
from e5 import InputError, tasks
from e5.catalog import SENTENCEPIECE_TOKENS, WORDPIECE_TOKENS, PromptKind
from e5.limits import Limits
from e5.vectors import Vectors
from e5_gateway import embedding
from e5_gateway.embedding import INPUT_TYPES, prediction_body, quoted
from e5_gateway.errors import ErrorFormat, GatewayError, Json, shorten
from e5_gateway.metrics import Metrics
from e5_gateway.requests import read_json
from e5_gateway.settings import GatewaySettings
from e5_gateway.target import Identity
from e5_gateway.targets import Targets

TEXT_FIELDS = ("truncate", "truncation_direction", "prompt_name")
EMBED_FIELDS = ("inputs", *TEXT_FIELDS, "normalize", "dimensions", "encoding_format")
"""`encoding_format` is InferenceClient's: text-embeddings-inference ignores it."""
SIMILARITY_FIELDS = ("inputs", "parameters")
TOKENIZE_FIELDS = ("inputs", "add_special_tokens", "prompt_name")
PREFIXES = {"query: ": True, "passage: ": False}
"""Prompts of the prefix models → whether the text is a query."""
PROMPT_TASKS = {"web_search_query": "MSMARCO", "sts_query": "STS", "summarization_query": "Summarization"}
"""Prompts that the model card of e5-mistral-7b-instruct names → trained tasks with these instructions."""
SPECIAL_TOKENS = {*SENTENCEPIECE_TOKENS, *WORDPIECE_TOKENS}
POOLING = {"last": "last_token"}
"""Names that differ in text-embeddings-inference."""
TOKENIZATION_WORKERS = 2
"""Of the server: e5/serving/tokenizing.py."""
TOKEN_VALUES = 5
"""JSON values of one token in an answer."""
STATUSES = {400: 422, 409: 424, 500: 424, 502: 424}
"""Of a failed prediction."""
ERROR_TYPES = {424: "Backend", 429: "Overloaded", 503: "Unhealthy"}
_SERVER_NAME = re.compile(r"`(queries|documents)\[(\d+)\]`")


@dataclass(frozen=True)
class Answer:
    """How to write the answer to a request.

    `order`: indices of the request's texts in the order of the server, which has the `queries` first. `name`: a text's
    name in errors, by its index. `write`: makes the answer of the texts' vectors or tokens, in the request's order.
    """

    order: list[int]
    queries: int
    name: Callable[[int], str]
    write: Callable[[list[Any]], Any]

    def render(self, prediction: Json) -> bytes:
        """Write the answer. Numbers have the fewest digits that give the float32 back."""
        output = prediction["output"]
        rows: Iterable[Any] = (
            zip(output["token_ids"], output["pieces"], strict=True)
            if output.get("token_ids") is not None
            else embedding.vectors_of(prediction)
        )
        by_index = sorted(zip(self.order, rows, strict=True), key=itemgetter(0))
        return orjson.dumps(self.write([row for _, row in by_index]), option=orjson.OPT_SERIALIZE_NUMPY)

    def translate(self, error: GatewayError) -> GatewayError:
        """A prediction's error with this API's status and names: the server's `documents[0]` may be `inputs[3]`."""

        def rename(match: re.Match[str]) -> str:
            place = int(match[2]) + (self.queries if match[1] == "documents" else 0)
            return f"`{self.name(self.order[place])}`" if place < len(self.order) else match[0]

        message = error.message.replace("pass long_texts=truncate or average", "set `truncate` to true")
        error.message = _SERVER_NAME.sub(rename, message)
        error.status = STATUSES.get(error.status, error.status)
        return error


Parse = Callable[[Json, Identity, int], tuple[Answer, bytes]]
"""(body, identity, numbers that the answer may have) → the answer and the prediction request. Raises GatewayError."""


def router(targets: Targets, settings: GatewaySettings, metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.post("/")
    async def root(request: Request) -> Response:
        return await respond(request, parse_root)

    @routes.post("/embed")
    async def embed(request: Request) -> Response:
        return await respond(request, parse_embed)

    @routes.post("/similarity")
    async def similarity(request: Request) -> Response:
        return await respond(request, parse_similarity)

    @routes.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await respond(request, parse_tokenize, "tei tokens")

    @routes.get("/info")
    async def info() -> Response:
        identity = await targets.require_identity()
        return _json(orjson.dumps(describe(identity, targets.queue.capacity)))

    async def respond(request: Request, parse: Parse, api: str = "tei") -> Response:
        identity = await targets.require_identity()
        answer, content = await read(request, parse, identity)
        try:
            prediction = await embedding.run(request, targets, metrics, api, identity.model, content)
        except GatewayError as error:
            raise answer.translate(error) from None
        # In a thread: 400,000 tokens, as many as max_answer_numbers allows, take 0.4 s to write.
        rendered = await asyncio.to_thread(answer.render, prediction)
        return _json(rendered, embedding.truncation(prediction)[1])

    async def read(request: Request, parse: Parse, identity: Identity) -> tuple[Answer, bytes]:
        """A function of its own frees the parsed texts while the request waits: they take ten times their bytes."""
        return parse(await read_json(request, settings.max_body_bytes), identity, settings.max_answer_numbers)

    return routes


def error_body(error: GatewayError) -> Json:
    """text-embeddings-inference's error: {error, error_type}."""
    default = "Empty" if error.code == "empty" else "Validation" if error.status < 500 else "Backend"
    return {"error": error.message, "error_type": ERROR_TYPES.get(error.status, default)}


ERRORS = ErrorFormat(re.compile(r"/(?:embed|similarity|tokenize|info)?\Z"), error_body)


def split_prompt(text: str, kind: PromptKind | None, query: bool) -> tuple[bool, str]:
    """Whether a text is a query, and what the server has to prompt.

    A text that brings its model's own prompt is embedded with just this prompt: the server adds E5's prefixes again,
    and adds nothing to the documents of instruct models. `query`: what other texts are. `kind` None: not known.
    """
    if kind == "prefix":
        for prefix, is_query in PREFIXES.items():
            if text.startswith(prefix):
                return is_query, text.removeprefix(prefix)
    elif kind == "instruct" and text.startswith("Instruct: ") and "\nQuery: " in text:
        return False, text
    return query, text


def parse_root(body: Json, identity: Identity, max_numbers: int) -> tuple[Answer, bytes]:
    """InferenceClient posts feature_extraction and sentence_similarity to the same address."""
    parse = parse_similarity if isinstance(body.get("inputs"), dict) else parse_embed
    return parse(body, identity, max_numbers)


def parse_embed(body: Json, identity: Identity, max_numbers: int) -> tuple[Answer, bytes]:
    """Validate a request for vectors. A null field counts as missing, here and below."""
    body = _fields(body, EMBED_FIELDS)
    texts, name = _inputs(body)
    numbers = len(texts) * identity.dimensions
    if numbers > max_numbers:
        raise _invalid(f"the answer would have {numbers:,} numbers, more than {max_numbers:,}: send fewer texts")
    embedding.check_dimensions(body, "dimensions", identity, 422)
    if body.get("encoding_format", "float") != "float":
        raise _invalid("`encoding_format` must be float: leave it out, or use /v1/embeddings")
    normalize = _typed(body, "normalize", True)
    return _prepare(texts, identity, body, name, lambda vectors: vectors, normalize=normalize)


def parse_similarity(body: Json, identity: Identity, _: int) -> tuple[Answer, bytes]:
    """Validate a request for cosines. By default all texts are queries of the STS task, as the model cards advise."""
    body = _fields(body, SIMILARITY_FIELDS)
    inputs = _typed(body, "inputs", {})
    source, sentences = inputs.get("source_sentence"), inputs.get("sentences")
    if not isinstance(source, str):
        raise _invalid("`inputs.source_sentence` must be a string")
    texts = [source, *_strings(sentences, "inputs.sentences")]
    options = _fields(_typed(body, "parameters", {}), TEXT_FIELDS)

    def name(index: int) -> str:
        return f"inputs.sentences[{index - 1}]" if index else "inputs.source_sentence"

    return _prepare(texts, identity, options, name, cosines, "sts_query", normalize=True)


def parse_tokenize(body: Json, identity: Identity, max_numbers: int) -> tuple[Answer, bytes]:
    """Validate a request for tokens."""
    body = _fields(body, TOKENIZE_FIELDS)
    texts, name = _inputs(body)
    special = _typed(body, "add_special_tokens", True)

    def write(rows: list[tuple[list[int], list[str]]]) -> list[list[Json]]:
        values = TOKEN_VALUES * sum(len(ids) for ids, _ in rows)
        if values > max_numbers:
            raise _invalid(f"the answer would have {values:,} values, more than {max_numbers:,}: send fewer texts")
        return [list_tokens(ids, pieces, special) for ids, pieces in rows]

    return _prepare(texts, identity, body, name, write, encoding_format="tokens")


def cosines(vectors: list[Vectors]) -> Vectors:
    """Cosines of the first vector and each of the others, float32 [N - 1]. The vectors have length 1."""
    product: Vectors = np.stack(vectors[1:]) @ vectors[0]
    return product


def list_tokens(ids: list[int], pieces: list[str], special: bool) -> list[Json]:
    """A text's tokens. Only the first and the last may be special tokens of the model: others are the text's."""
    ends = (0, len(ids) - 1)
    marks = [index in ends and piece in SPECIAL_TOKENS for index, piece in enumerate(pieces)]
    return [
        {"id": id, "text": piece, "special": mark, "start": None, "stop": None}
        for id, piece, mark in zip(ids, pieces, marks, strict=True)
        if special or not mark
    ]


def describe(identity: Identity, max_requests: int) -> Json:
    """text-embeddings-inference's Info, without its optional fields that are not known here.

    The gateway does not know the server's limits: `max_client_batch_size` and `max_batch_tokens` are the defaults for
    the texts and tokens of one request.
    """
    entry = identity.catalog_entry
    published = entry.sources[-1][1] if entry else ()
    pooling = POOLING.get(entry.pooling, entry.pooling) if entry else "unknown"
    info: Json = {"model_sha": published[-1].revision} if published else {}
    return info | {
        "model_id": published[-1].repo if published else identity.model,
        "model_dtype": identity.dtype,
        "served_model_name": identity.model,
        "model_type": {"embedding": {"pooling": pooling}},
        "max_concurrent_requests": max_requests,
        "max_input_length": identity.max_tokens,
        "max_batch_tokens": Limits.request_tokens,
        "max_client_batch_size": Limits.texts,
        "auto_truncate": True,
        "tokenization_workers": TOKENIZATION_WORKERS,
        "version": e5.__version__,
    }


def _prepare(
    texts: list[str],
    identity: Identity,
    options: Json,
    name: Callable[[int], str],
    write: Callable[[list[Any]], Any],
    prompt: str = "document",
    **inputs: object,
) -> tuple[Answer, bytes]:
    """The answer and the prediction of checked texts. `prompt`: the default of `prompt_name`."""
    truncate = _typed(options, "truncate", None, bool)
    direction = options.get("truncation_direction", "right")
    if direction not in ("right", "Right"):
        raise _invalid(f"`truncation_direction` is {quoted(direction)}: it must be right, texts are cut at their end")
    given = _typed(options, "prompt_name", None, str)
    query, task = _parse_prompt(prompt if given is None else given)
    kind = identity.catalog_entry.prompt if identity.catalog_entry and given is None else None
    split = [split_prompt(text, kind, query) for text in texts]
    order = sorted(range(len(split)), key=lambda index: not split[index][0])
    queries = [text for is_query, text in split if is_query]
    content = prediction_body(
        queries=queries or None,
        documents=[text for is_query, text in split if not is_query] or None,
        task=task if queries else None,
        long_texts=None if truncate is None else "truncate" if truncate else "error",
        **{"encoding_format": "base64"} | inputs,
    )
    return Answer(order, len(queries), name, write), content


def _parse_prompt(name: str) -> tuple[bool, str | None]:
    """Whether a prompt is that of queries, and its task; None means the server's. Raises GatewayError."""
    if name in INPUT_TYPES:
        return INPUT_TYPES[name] == "query", None
    try:
        return True, tasks.instruction(PROMPT_TASKS.get(name, name))
    except InputError:
        known = ", ".join(("query", "document", *PROMPT_TASKS))
        raise _invalid(f"`prompt_name` is {quoted(name)}: choose {known}, or the name of a trained task") from None


def _inputs(body: Json) -> tuple[list[str], Callable[[int], str]]:
    """The texts of `inputs`, and their names in errors."""
    inputs = body.get("inputs")
    if isinstance(inputs, str):
        return [inputs], lambda _: "inputs"
    return _strings(inputs, "inputs"), lambda index: f"inputs[{index}]"


def _strings(value: object, name: str) -> list[str]:
    if not isinstance(value, list):
        raise _invalid(f"`{name}` must be a {'string or a ' if name == 'inputs' else ''}list of strings")
    if not value:
        raise GatewayError(400, f"`{name}` cannot be empty", "empty")
    for index, text in enumerate(value):
        if type(text) is int or isinstance(text, list):
            raise _invalid(f"`{name}[{index}]` is not a string: token ids are not taken, send the texts themselves")
        if not isinstance(text, str):
            raise _invalid(f"`{name}[{index}]` is not a string")
    return value


def _fields(body: Json, names: tuple[str, ...]) -> Json:
    """The fields that are not null. Raises GatewayError for one that is not among the names."""
    for name in body:
        if name not in names:
            raise _invalid(f"`{shorten(name)}` is not a field of this request: the fields are {', '.join(names)}")
    return {name: value for name, value in body.items() if value is not None}


def _typed(body: Json, name: str, default: Any, kind: type | None = None) -> Any:
    """A field's value, which must be of a type, else of the default's."""
    value = body.get(name, default)
    if value is not default and not isinstance(value, kind or type(default)):
        kinds = {bool: "a boolean", str: "a string", dict: "an object"}
        raise _invalid(f"`{name}` must be {kinds[kind or type(default)]}")
    return value


def _invalid(message: str) -> GatewayError:
    return GatewayError(422, message)


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, headers=headers, media_type="application/json")
