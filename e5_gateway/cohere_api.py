"""Cohere's API: POST /v1/rerank, /v2/rerank, /v1/embed, /v2/embed. Jina's rerank clients use /v1/rerank or /rerank.

A relevance score is the cosine of query and document, not a probability. Vectors have length 1. The extra field `task`
or the model name's suffix gives the queries' task, as in OpenAI's API; `long_texts` is an extra field of rerank only,
because embed has Cohere's `truncate`.
"""

import base64
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from e5.inputs import LongTexts
from e5.vectors import Vectors, to_int8, to_ubinary
from e5_gateway import embedding
from e5_gateway.embedding import check_dimensions, choice, given_fields, invalid, parse_kind, prediction_body, quoted
from e5_gateway.errors import ErrorFormat, GatewayError, Json
from e5_gateway.metrics import Metrics
from e5_gateway.requests import read_json
from e5_gateway.settings import GatewaySettings
from e5_gateway.target import Identity
from e5_gateway.targets import Targets

RERANK_FIELDS = (
    "model",
    "query",
    "documents",
    "top_n",
    "return_documents",
    "rank_fields",
    "max_tokens_per_doc",
    "max_chunks_per_doc",
    "task",
    "long_texts",
)
EMBED_FIELDS = (
    "model",
    "texts",
    "input_type",
    "embedding_types",
    "truncate",
    "max_tokens",
    "output_dimension",
    "task",
)
SYMMETRIC = ("classification", "clustering")
"""Both are queries: the cards of the prefix models want `query: ` in front of texts that are no passages, and the
instruct models were trained with an instruction for them."""
INPUT_TYPES = embedding.INPUT_TYPES | dict.fromkeys(SYMMETRIC, "query")
TRUNCATE = {"NONE": "error", "END": "truncate"}
EMBEDDING_TYPES: dict[str, Callable[[Vectors], object]] = {
    "float": lambda vectors: vectors,
    "int8": lambda vectors: to_int8(vectors)[0],
    "uint8": lambda vectors: to_int8(vectors)[0].view(np.uint8) + np.uint8(128),  # wraps around: int8 + 128
    "binary": lambda vectors: (to_ubinary(vectors) - np.uint8(128)).view(np.int8),  # wraps around: ubinary - 128
    "ubinary": to_ubinary,
    "base64": lambda vectors: [base64.b64encode(row.tobytes()).decode() for row in vectors],
}
"""How a type is made of unit vectors. Cohere's SDK 7.3 documents packed bits, their ranges (binary from -128 to 127,
ubinary from 0 to 255) and base64 of float bytes. The offset of 128 is that of sentence-transformers 6.2's
quantize_embeddings()."""


@dataclass(frozen=True)
class RerankResponse:
    """`documents`: JSON of each one, if the answer shall repeat them."""

    model: str
    top_n: int
    documents: list[orjson.Fragment] | None

    def render(self, prediction: Json, version: str) -> Json:
        """The answer that both Cohere's and Jina's clients read. Equal scores are sorted by index."""
        scores = prediction["output"]["scores"][0]
        results: list[Json] = [
            {"index": index, "relevance_score": scores[index] / 100}  # the server's scores are 100 × cosine
            for index in sorted(range(len(scores)), key=lambda index: -scores[index])[: self.top_n]
        ]
        if self.documents is not None:
            for result in results:
                result["document"] = self.documents[result["index"]]
        tokens = prediction["metrics"]["input_tokens"]
        body: Json = {
            "id": str(uuid.uuid4()),
            "model": self.model,
            "object": "list",
            "results": results,
            "meta": _meta(version, search_units=1),
            "usage": {"total_tokens": tokens, "prompt_tokens": tokens},
        }
        cut, _ = embedding.truncation(prediction)
        if documents := [index - 1 for index in cut if index]:  # text 0 is the query
            body["truncated"] = documents
        return body | ({"query_truncated": True} if 0 in cut else {})


@dataclass(frozen=True)
class EmbedResponse:
    """`texts`: their JSON. `types`: keys of EMBEDDING_TYPES; none of them: v1's plain lists of floats."""

    texts: orjson.Fragment
    types: tuple[str, ...]

    def render(self, prediction: Json, version: str) -> Json:
        """The answer, with NumPy arrays. Floats have the fewest digits that give the float32 back."""
        vectors = embedding.vectors_of(prediction)
        body = {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type" if self.types else "embeddings_floats",
            "embeddings": {name: EMBEDDING_TYPES[name](vectors) for name in self.types} if self.types else vectors,
            "texts": self.texts,
            "meta": _meta(version, input_tokens=prediction["metrics"]["input_tokens"]),
        }
        cut, _ = embedding.truncation(prediction)
        return body | ({"truncated": cut} if cut else {})


def router(targets: Targets, settings: GatewaySettings, metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.post("/rerank")
    @routes.post("/v1/rerank")
    @routes.post("/v2/rerank")
    async def rerank(request: Request) -> Response:
        return await answer(request, "documents", parse_rerank)

    @routes.post("/v1/embed")
    @routes.post("/v2/embed")
    async def embed(request: Request) -> Response:
        def parse(body: Json, identity: Identity) -> tuple[bytes, EmbedResponse]:
            return parse_embed(body, identity, settings.max_answer_numbers, _version(request))

        return await answer(request, "texts", parse)

    async def answer(
        request: Request, texts: str, parse: Callable[[Json, Identity], tuple[bytes, RerankResponse | EmbedResponse]]
    ) -> Response:
        """`texts`: the field that has them, for errors."""
        identity = await targets.require_identity()
        # No variable keeps the parsed body while the request waits: its texts take ten times their bytes.
        content, response = parse(await read_json(request, settings.max_body_bytes), identity)
        try:
            prediction = await embedding.run(request, targets, metrics, "cohere", identity.model, content)
        except GatewayError as error:
            raise embedding.rename_texts(error, texts) from None
        body = orjson.dumps(response.render(prediction, _version(request)), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, headers=embedding.truncation(prediction)[1], media_type="application/json")

    return routes


def error_body(error: GatewayError) -> Json:
    """Cohere's clients read `message`, Jina's `detail`."""
    return {"message": error.message, "detail": error.message}


ERRORS = ErrorFormat(re.compile(r"/v2/|(?:/v1)?/rerank/?\Z|/v1/embed/?\Z"), error_body)


def parse_rerank(body: Json, identity: Identity) -> tuple[bytes, RerankResponse]:
    """The prediction request, as JSON, and what the answer needs. A null field counts as missing.

    Raises GatewayError, with the field in `param`.
    """
    body = {"model": identity.model} | given_fields(body, RERANK_FIELDS, "query", "documents")
    if not isinstance(body["query"], str):
        raise invalid("`query` must be a string", "query")
    if body.get("rank_fields", ["text"]) != ["text"]:
        raise invalid('`rank_fields` must be ["text"]: to rank by more, send one string with all of it', "rank_fields")
    documents = _items(body, "documents")
    texts = [_document_text(index, document, "rank_fields" in body) for index, document in enumerate(documents)]
    input_type, task = parse_kind(body, identity)
    if input_type == "document":
        raise invalid("`model` must not have the suffix of a document: the query is embedded as a query", "model")
    top_n = body.get("top_n", len(texts))
    if type(top_n) is not int or top_n < 1:
        raise invalid(f"`top_n` is {quoted(top_n)}: pass 1 or more, or leave it out", "top_n")
    return_documents = body.get("return_documents", False)
    if not isinstance(return_documents, bool):
        raise invalid("`return_documents` must be a boolean", "return_documents")
    _check_max_tokens(body, "max_tokens_per_doc", identity)
    chunks = body.get("max_chunks_per_doc", 1)
    if type(chunks) is not int or chunks != 1:
        cure = "a document is read as one text, see `long_texts`: pass 1, or leave it out"
        raise invalid(f"`max_chunks_per_doc` is {quoted(chunks)}; {cure}", "max_chunks_per_doc")
    content = prediction_body(
        query=body["query"],  # not in a list, so that errors call it `query`
        documents=texts,
        task=task,
        encoding_format="ubinary",  # the smallest vectors: only the scores are used, and these are computed before
        long_texts=choice(body, "long_texts", get_args(LongTexts), "") or None,
    )
    shown = [item if isinstance(item, dict) else {"text": item} for item in documents] if return_documents else None
    fragments = None if shown is None else [orjson.Fragment(orjson.dumps(item)) for item in shown]
    return content, RerankResponse(body["model"], top_n, fragments)


def parse_embed(body: Json, identity: Identity, max_numbers: int, version: str) -> tuple[bytes, EmbedResponse]:
    """Like parse_rerank(). `max_numbers`: JSON numbers that the answer may have. `version`: "1" or "2"."""
    body = {"model": identity.model} | given_fields(body, EMBED_FIELDS, "texts")
    texts = _items(body, "texts")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise invalid(f"`texts[{index}]` is not a string", "texts")
    input_type, task = parse_kind(body, identity, INPUT_TYPES)
    if input_type is None and task is None:
        raise invalid(f"`input_type` is missing: choose one of {', '.join(INPUT_TYPES)}", "input_type")
    prefix = identity.catalog_entry is not None and identity.catalog_entry.prompt == "prefix"
    if body.get("input_type") in SYMMETRIC and task is None and not prefix:
        cure = "say in `task` what to tell apart; the default task is web search"
        raise invalid(f"`input_type` is {quoted(body['input_type'])}: {cure}", "input_type")
    types = _embedding_types(body) or (() if version == "1" else ("float",))
    truncate = TRUNCATE[choice(body, "truncate", TRUNCATE, "END")]
    _check_max_tokens(body, "max_tokens", identity)
    check_dimensions(body, "output_dimension", identity)
    dimensions = identity.dimensions
    sizes = {"base64": 0, "binary": -(-dimensions // 8), "ubinary": -(-dimensions // 8)}
    numbers = len(texts) * sum(sizes.get(name, dimensions) for name in types or ("float",))
    if numbers > max_numbers:
        cause = f"the answer would have {numbers:,} numbers, more than {max_numbers:,}"
        raise invalid(f"{cause}: send fewer texts, or ask for `embedding_types` base64", "embedding_types")
    content = prediction_body(
        **{"documents" if input_type == "document" else "queries": texts},
        task=task,
        normalize=True,
        encoding_format="base64",
        long_texts=truncate,
    )
    return content, EmbedResponse(orjson.Fragment(orjson.dumps(texts)), types)


def _items(body: Json, name: str) -> list[object]:
    value = body[name]
    if not isinstance(value, list) or not value:
        raise invalid(f"`{name}` must be a list of one or more texts", name)
    return value


def _document_text(index: int, document: object, has_rank_fields: bool) -> str:
    """The text of a document: a string, or `text` of an object. Raises GatewayError."""
    if isinstance(document, str):
        return document
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(text, str):
        raise invalid(f"`documents[{index}]` is neither a string nor an object with a string in `text`", "documents")
    if len(document) > 1 and not has_rank_fields:
        cure = 'set `rank_fields` to ["text"] to rank by `text`, or send one string with all of it'
        raise invalid(f"`documents[{index}]` has more fields than `text`: {cure}", "documents")
    return text


def _check_max_tokens(body: Json, name: str, identity: Identity) -> None:
    """Refuse a limit below the model's own, at which texts are cut anyway. Raises GatewayError."""
    limit = body.get(name, identity.max_tokens)
    if type(limit) is not int or limit < identity.max_tokens:
        cure = f"texts are cut at the model's {identity.max_tokens} tokens and no earlier: leave it out"
        raise invalid(f"`{name}` is {quoted(limit)}; {cure}", name)


def _embedding_types(body: Json) -> tuple[str, ...]:
    """The types of `embedding_types`, each once; none if it is missing or empty. Raises GatewayError."""
    value = body.get("embedding_types", [])
    if not isinstance(value, list):
        raise invalid("`embedding_types` must be a list", "embedding_types")
    for name in value:
        if not isinstance(name, str) or name not in EMBEDDING_TYPES:
            cure = f"choose from {', '.join(EMBEDDING_TYPES)}"
            raise invalid(f"`embedding_types` has {quoted(name)}: {cure}", "embedding_types")
    return tuple(dict.fromkeys(value))


def _version(request: Request) -> str:
    return "1" if request.scope["path"].startswith("/v1/") else "2"


def _meta(version: str, **billed_units: int) -> Json:
    return {"api_version": {"version": version}, "billed_units": billed_units}
