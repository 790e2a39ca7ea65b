"""Cohere's and Jina's API: accepted requests, error messages, and answers computed by hand.

A vector of tests/rule_predictor.py is (characters, words, 0, 1); it reads eight words.
"""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from e5 import catalog, tasks
from e5_gateway.cohere_api import parse_embed, parse_rerank
from e5_gateway.errors import GatewayError
from e5_gateway.target import Identity
from tests.gateways import BEARER, Gateway
from tests.rule_predictor import MODEL

NAME = "e5-mistral-tiny"
IDENTITY = Identity(NAME, np.zeros(12, np.float32), {}, "0.23.1", catalog.get(NAME), "0" * 64, 0.0, "", "float32", 512)
PREFIX = replace(IDENTITY, model="e5-small-v2", catalog_entry=catalog.get("e5-small-v2"))
NINE_WORDS = "1 2 3 4 5 6 7 8 9"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def client(keyed: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed.url, headers=BEARER, timeout=60) as connected:
        yield connected


def rerank_inputs(identity: Identity = IDENTITY, **fields: Any) -> Json:
    content, _ = parse_rerank({"query": "which?", "documents": ["a", "b"]} | fields, identity)
    inputs: Json = json.loads(content)["input"]
    return inputs


def embed_inputs(identity: Identity = IDENTITY, **fields: Any) -> Json:
    body = {"texts": ["a", "b"], "input_type": "search_document"} | fields
    inputs: Json = json.loads(parse_embed(body, identity, 1_000, "2")[0])["input"]
    return inputs


# ---- requests


def test_rerank_is_one_prediction_of_a_query_and_documents() -> None:
    plain = {"query": "which?", "documents": ["a", "b"], "encoding_format": "ubinary"}
    assert rerank_inputs() == rerank_inputs(model=NAME) == rerank_inputs(model=f"{NAME}-query") == plain
    assert rerank_inputs(task="find", long_texts="average") == plain | {"task": "find", "long_texts": "average"}
    assert rerank_inputs(model=f"{NAME}:query:NQ") == plain | {"task": tasks.instruction("NQ")}
    for unneeded in ({"top_n": 1}, {"max_tokens_per_doc": 4096}, {"max_chunks_per_doc": 1}, {"return_documents": True}):
        assert rerank_inputs(**unneeded) == plain
    objects = [{"text": "a", "title": "A"}, {"text": "b"}]
    assert rerank_inputs(documents=objects, rank_fields=["text"]) == rerank_inputs(documents=["a", {"text": "b"}])


def test_embed_is_one_prediction_of_queries_or_documents() -> None:
    plain = {"normalize": True, "encoding_format": "base64", "long_texts": "truncate"}
    documents, queries = plain | {"documents": ["a", "b"]}, plain | {"queries": ["a", "b"]}
    assert embed_inputs() == embed_inputs(model=f"{NAME}-passage") == embed_inputs(truncate="END") == documents
    assert embed_inputs(max_tokens=512, output_dimension=12, embedding_types=["int8", "float"]) == documents
    assert embed_inputs(input_type="search_query") == embed_inputs(input_type=None, model=f"{NAME}:query") == queries
    assert embed_inputs(input_type="query", truncate="NONE") == queries | {"long_texts": "error"}
    assert embed_inputs(input_type="clustering", task="by topic") == queries | {"task": "by topic"}
    assert embed_inputs(PREFIX, input_type="classification") == queries


def assert_refused(parse: Callable[..., Json], fields: Json, param: str, words: str) -> None:
    with pytest.raises(GatewayError) as refused:
        parse(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"query": None}, "query", "`query` is missing"),
        ({"query": {"text": "a"}}, "query", "must be a string"),
        ({"documents": None}, "documents", "`documents` is missing"),
        ({"documents": []}, "documents", "one or more"),
        ({"documents": "a"}, "documents", "must be a list"),
        ({"documents": ["a", 1]}, "documents", "`documents[1]` is neither a string nor an object"),
        ({"documents": [{"title": "a"}]}, "documents", "`documents[0]` is neither a string nor an object"),
        ({"documents": [{"text": ["a"]}]}, "documents", "`documents[0]` is neither"),
        ({"documents": ["a", {"text": "a", "title": "b"}]}, "documents", '`documents[1]` has more fields'),
        ({"rank_fields": ["title", "text"]}, "rank_fields", 'must be ["text"]'),
        ({"top_n": 0}, "top_n", "`top_n` is 0: pass 1 or more"),
        ({"top_n": True}, "top_n", "pass 1 or more"),
        ({"top_n": "3"}, "top_n", "pass 1 or more"),
        ({"return_documents": 1}, "return_documents", "must be a boolean"),
        ({"max_tokens_per_doc": 511}, "max_tokens_per_doc", "cut at the model's 512 tokens and no earlier"),
        ({"max_tokens_per_doc": 1e9}, "max_tokens_per_doc", "cut at the model's 512 tokens"),
        ({"max_chunks_per_doc": 10}, "max_chunks_per_doc", "read as one text"),
        ({"model": f"{NAME}:document"}, "model", "must not have the suffix of a document"),
        ({"model": f"{NAME}:query:NQ", "task": "find"}, "task", "contradicts the suffix"),
        ({"task": 1}, "task", "must be a string"),
        ({"max_chunks_per_doc": True}, "max_chunks_per_doc", "is True; a document is read as one text"),
        ({"long_texts": "cut"}, "long_texts", "choose one of truncate, error, average"),
        ({"input_type": "query"}, "input_type", "is not a field of this API"),
        ({"relevant_spans": {}}, "relevant_spans", "is not a field of this API"),
    ],
)  # fmt: skip
def test_invalid_rerank_names_field_and_cure(fields: Json, param: str, words: str) -> None:
    assert_refused(rerank_inputs, fields, param, words)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"texts": None}, "texts", "`texts` is missing"),
        ({"texts": []}, "texts", "one or more"),
        ({"texts": ["a", None]}, "texts", "`texts[1]` is not a string"),
        ({"images": ["data:,"]}, "images", "is not a field of this API"),
        ({"inputs": [{}]}, "inputs", "is not a field of this API"),
        ({"input_type": None}, "input_type", "choose one of query, document, passage, search_query, search_document"),
        ({"input_type": "image"}, "input_type", "choose one of"),
        ({"input_type": "clustering"}, "input_type", "say in `task` what to tell apart"),
        ({"input_type": "search_document", "task": "find"}, "task", "goes with queries only"),
        ({"embedding_types": "float"}, "embedding_types", "must be a list"),
        ({"embedding_types": ["float", "int4"]}, "embedding_types", "has 'int4': choose from float, int8, uint8"),
        ({"embedding_types": [["float"]]}, "embedding_types", "has a list"),
        ({"truncate": "START"}, "truncate", "choose one of NONE, END"),
        ({"max_tokens": 100}, "max_tokens", "cut at the model's 512 tokens"),
        ({"output_dimension": 8}, "output_dimension", "have 12 and cannot be cut"),
        ({"output_dimension": 12.0}, "output_dimension", "have 12 and cannot be cut"),
    ],
)
def test_invalid_embed_names_field_and_cure(fields: Json, param: str, words: str) -> None:
    assert_refused(embed_inputs, fields, param, words)


@pytest.mark.parametrize(
    ("types", "version", "numbers"),
    [
        (None, "1", 24),
        (None, "2", 24),
        (["base64"], "2", 0),
        (["binary", "ubinary", "ubinary"], "2", 8),  # 12 bits are two bytes
        (["float", "int8", "uint8", "binary", "base64"], "1", 76),
    ],
)
def test_limit_of_numbers_counts_every_type(types: list[str] | None, version: str, numbers: int) -> None:
    body = {"texts": ["a", "b"], "input_type": "search_query", "embedding_types": types}
    parse_embed(body, IDENTITY, numbers, version)
    if numbers:
        with pytest.raises(GatewayError, match=f"would have {numbers} numbers, more than {numbers - 1}: send fewer"):
            parse_embed(body, IDENTITY, numbers - 1, version)


# ---- answers


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_sorts_by_cosine_and_then_takes_top_n(client: httpx.Client, path: str) -> None:
    """The query is (1, 1, 0, 1); 6 / √42 is its cosine with (3, 2, 0, 1)."""
    documents = ["abcdefgh", "a b", "abcd", "a", "c d"]
    cosines = {0: 10 / 198**0.5, 1: 6 / 42**0.5, 2: 6 / 54**0.5, 3: 1.0, 4: 6 / 42**0.5}
    answer = client.post(path, json={"query": "q", "documents": documents}).json()
    assert [result["index"] for result in answer["results"]] == [3, 1, 4, 2, 0]  # 1 and 4 are equal
    for result in answer["results"]:
        assert result.keys() == {"index", "relevance_score"}
        assert result["relevance_score"] == pytest.approx(cosines[result["index"]], abs=1e-9)
    assert (answer["model"], answer["object"], "truncated" in answer) == (MODEL, "list", False)
    assert answer["usage"] == {"total_tokens": 8, "prompt_tokens": 8}
    version = "1" if path == "/v1/rerank" else "2"
    assert answer["meta"] == {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
    for top_n, indices in ((1, [3]), (3, [3, 1, 4]), (9, [3, 1, 4, 2, 0])):
        answer = client.post(path, json={"query": "q", "documents": documents, "top_n": top_n}).json()
        assert [result["index"] for result in answer["results"]] == indices


def test_rerank_returns_documents_as_they_came(client: httpx.Client) -> None:
    body = {"query": "q", "documents": ["abcd", {"text": "é", "id": [7]}], "rank_fields": ["text"]}
    answer = client.post("/v1/rerank", json=body | {"return_documents": True}).json()
    assert [result["document"] for result in answer["results"]] == [{"text": "é", "id": [7]}, {"text": "abcd"}]


def test_cut_texts_are_reported(client: httpx.Client) -> None:
    documents = ["short", NINE_WORDS, "short", NINE_WORDS]
    answer = client.post("/v2/rerank", json={"query": "q", "documents": documents})
    assert (answer.headers["X-Embedding-Truncated"], answer.json()["truncated"]) == ("2", [1, 3])
    assert "query_truncated" not in answer.json()
    answer = client.post("/v2/rerank", json={"query": NINE_WORDS, "documents": ["short"]})
    assert (answer.headers["X-Embedding-Truncated"], answer.json()["query_truncated"]) == ("1", True)
    assert "truncated" not in answer.json()
    answer = client.post("/v2/embed", json={"texts": documents, "input_type": "search_query"})
    assert (answer.headers["X-Embedding-Truncated"], answer.json()["truncated"]) == ("2", [1, 3])
    refused = client.post("/v2/embed", json={"texts": documents, "input_type": "search_query", "truncate": "NONE"})
    assert refused.status_code == 400 and "9 tokens, more than 8" in refused.json()["message"]
    refused = client.post("/rerank", json={"query": "q", "documents": documents, "long_texts": "error"})
    assert refused.status_code == 400 and "9 tokens, more than 8" in refused.json()["detail"]


def test_embed_types_have_the_numbers_computed_by_hand(client: httpx.Client) -> None:
    """The vectors are (4, 1, 0, 1) and (1, 1, 0, 1). 127 / 4 rounds to 32; the bits are 1101, 208 as a byte."""
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"model": MODEL, "texts": ["abcd", "a"], "input_type": "search_document", "embedding_types": types}
    answer = client.post("/v2/embed", json=body)
    expected: Json = {
        "float": [[4.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]],
        "int8": [[127, 32, 0, 32], [127, 127, 0, 127]],
        "uint8": [[255, 160, 128, 160], [255, 255, 128, 255]],
        "binary": [[80], [80]],
        "ubinary": [[208], [208]],
        "base64": [base64.b64encode(struct.pack("<4f", 4, 1, 0, 1)).decode(), "AACAPwAAgD8AAAAAAACAPw=="],
    }
    assert answer.json()["embeddings"] == expected
    assert (answer.json()["response_type"], answer.json()["texts"]) == ("embeddings_by_type", ["abcd", "a"])
    assert answer.json()["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 2}}
    del body["embedding_types"]
    assert client.post("/v2/embed", json=body).json()["embeddings"] == {"float": expected["float"]}
    first = client.post("/v1/embed", json=body).json()
    assert (first["response_type"], first["embeddings"]) == ("embeddings_floats", expected["float"])
    by_type = client.post("/v1/embed", json=body | {"embedding_types": ["int8"]}).json()
    assert (by_type["response_type"], by_type["embeddings"]) == ("embeddings_by_type", {"int8": expected["int8"]})


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v2/rerank", {"query": "q", "documents": ["fail"]}, 400, "`documents[0]` is refused: pass another"),
        ("/v2/embed", {"texts": ["fail"], "input_type": "query"}, 400, "`texts[0]` is refused: pass another"),
        ("/v1/rerank", {"query": "q", "documents": ["break"]}, 500, "broken"),
        ("/rerank", {"query": "q", "documents": ["a"], "model": "rerank-v3.5"}, 404, "is called 'rerank-v3.5'"),
        ("/v2/embed", {"documents": ["a"]}, 400, "`documents` is not a field of this API: the fields are model, texts"),
        ("/v1/embed", {"texts": ["a"]}, 400, "`input_type` is missing"),
        ("/v2/rerank", {"query": "q"}, 400, "`documents` is missing"),
    ],
)  # fmt: skip
def test_errors_are_read_by_both_clients(client: httpx.Client, path: str, body: Json, status: int, words: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert answer.json().keys() == {"message", "detail"}
    assert words in answer.json()["message"] == answer.json()["detail"]
