"""Cohere's official Python client, and LlamaIndex's client for Jina's reranker, unmodified, against the gateway.

Every score and vector must equal the library's.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import numpy as np
import pytest
from cohere.core.api_error import ApiError
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank  # type: ignore[import-untyped]
from sentence_transformers.util.quantization import quantize_embeddings

from e5 import DEFAULT_TASK, Embedder, scores, tasks
from e5_gateway.app import error_response
from e5_gateway.errors import GatewayError
from tests.clients.test_clients_python import DOCUMENT, KEY, MANY, MODEL, QUERY, assert_equal, decoded
from tests.gateways import Gateway

DOCUMENTS = ["Feed the cat twice a day.", DOCUMENT, "A recipe for soup.", "Berlin has a tall tower.", DOCUMENT]


@pytest.fixture(scope="module")
def v2(shared_gateway: Gateway) -> Iterator[cohere.ClientV2]:
    with cohere.ClientV2(base_url=shared_gateway.url, api_key=KEY, max_retries=0) as connected:
        yield connected


@pytest.fixture(scope="module")
def v1(shared_gateway: Gateway) -> Iterator[cohere.Client]:
    with cohere.Client(base_url=shared_gateway.url, api_key=KEY, max_retries=0) as connected:
        yield connected


def cosines(library: Embedder, documents: list[str], task: str = DEFAULT_TASK) -> list[float]:
    """Of QUERY with each document."""
    matrix = scores(library.embed_queries([QUERY], task=task), library.embed_documents(documents))
    return [float(score) / 100 for score in matrix[0]]


def assert_ranked(results: Any, expected: list[float], count: int | None = None) -> None:
    """The results are the `count` best of the expected scores, in NumPy's order of them."""
    order = np.argsort(-np.array(expected), kind="stable")[:count]
    assert [result.index for result in results] == order.tolist()
    assert [result.relevance_score for result in results] == pytest.approx([expected[i] for i in order], abs=1e-6)


def test_v2_rerank_equals_the_librarys_scores(v2: cohere.ClientV2, library: Embedder) -> None:
    answer = v2.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    assert_ranked(answer.results, cosines(library, DOCUMENTS))
    order = [result.index for result in answer.results]
    assert order.index(4) == order.index(1) + 1  # equal texts, by index
    assert answer.meta is not None and answer.meta.billed_units is not None and answer.meta.api_version is not None
    assert (answer.meta.api_version.version, answer.meta.billed_units.search_units) == ("2", 1)
    best = v2.rerank(model=MODEL, query=QUERY, documents=MANY, top_n=7, max_tokens_per_doc=4096)
    assert_ranked(best.results, cosines(library, MANY), 7)


def test_v2_rerank_takes_a_task(v2: cohere.ClientV2, library: Embedder) -> None:
    task = tasks.instruction("NQ")
    named = v2.rerank(model=f"{MODEL}:query:NQ", query=QUERY, documents=DOCUMENTS)
    extra: Any = {"additional_body_parameters": {"task": task}}
    in_body = v2.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, request_options=extra)
    for answer in (named, in_body):
        assert_ranked(answer.results, cosines(library, DOCUMENTS, task))


def test_v1_rerank_returns_documents(v1: cohere.Client, library: Embedder) -> None:
    objects: list[Any] = [{"text": text, "id": str(index)} for index, text in enumerate(DOCUMENTS)]
    answer = v1.rerank(query=QUERY, documents=objects, rank_fields=["text"], return_documents=True, top_n=3)
    assert_ranked(answer.results, cosines(library, DOCUMENTS), 3)
    for result in answer.results:
        assert result.document is not None and result.document.text == DOCUMENTS[result.index]
        assert result.document.id == str(result.index)  # type: ignore[attr-defined]  # the client keeps other fields
    plain = v1.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    assert {result.document for result in plain.results} == {None}


def test_v2_embed_equals_the_librarys_vectors(v2: cohere.ClientV2, library: Embedder) -> None:
    documents = v2.embed(model=MODEL, input_type="search_document", texts=MANY)
    queries = v2.embed(model=MODEL, input_type="search_query", texts=[QUERY], embedding_types=["float"])
    assert documents.embeddings.float_ is not None and queries.embeddings.float_ is not None
    assert_equal(documents.embeddings.float_, library.embed_documents(MANY, normalize=True))
    assert_equal(queries.embeddings.float_, library.embed_queries([QUERY], normalize=True))
    assert documents.texts == MANY and documents.embeddings.int8 is None
    assert documents.meta is not None and documents.meta.billed_units is not None
    assert documents.meta.billed_units.input_tokens == library.tokenize([], MANY, "").total


def test_v2_embed_types_agree_with_sentence_transformers(v2: cohere.ClientV2, library: Embedder) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    got = v2.embed(model=MODEL, input_type="search_document", texts=MANY, embedding_types=types).embeddings
    assert got.base64 is not None
    vectors = np.stack([decoded(text) for text in got.base64])
    assert_equal(vectors, library.embed_documents(MANY, normalize=True))
    np.testing.assert_array_equal(np.array(got.float_, np.float32), vectors)
    np.testing.assert_array_equal(got.binary, quantize_embeddings(vectors, precision="binary"))
    np.testing.assert_array_equal(got.ubinary, quantize_embeddings(vectors, precision="ubinary"))
    int8 = np.array(got.int8)
    np.testing.assert_array_equal(np.array(got.uint8) - 128, int8)
    exact = vectors * (127 / np.abs(vectors).max(axis=1, keepdims=True))
    assert np.abs(int8 - exact).max() < 0.5001


def test_v1_embed_equals_the_librarys_vectors(v1: cohere.Client, library: Embedder) -> None:
    """The client sends batches of 96 and merges their answers, which it tells apart by `response_type`."""
    expected = library.embed_documents(MANY, normalize=True)
    plain = v1.embed(model=MODEL, input_type="search_document", texts=MANY)
    assert plain.response_type == "embeddings_floats"
    assert_equal(plain.embeddings, expected)
    by_type = v1.embed(model=MODEL, input_type="search_document", texts=MANY, embedding_types=["float", "ubinary"])
    assert by_type.response_type == "embeddings_by_type"
    assert by_type.embeddings.float_ is not None and by_type.texts == MANY
    assert_equal(by_type.embeddings.float_, expected)
    np.testing.assert_array_equal(by_type.embeddings.ubinary, quantize_embeddings(expected, precision="ubinary"))


def test_async_clients_equal_the_library(shared_gateway: Gateway, library: Embedder) -> None:
    async def main() -> tuple[Any, Any, Any, Any]:
        async with (
            cohere.AsyncClientV2(base_url=shared_gateway.url, api_key=KEY) as second,
            cohere.AsyncClient(base_url=shared_gateway.url, api_key=KEY) as first,
        ):
            return (
                await second.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS),
                await first.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS),
                await second.embed(model=MODEL, input_type="search_query", texts=[QUERY]),
                await first.embed(model=MODEL, input_type="search_query", texts=[QUERY]),
            )

    second, first, by_type, plain = asyncio.run(main())
    expected = cosines(library, DOCUMENTS)
    assert_ranked(second.results, expected)
    assert_ranked(first.results, expected)
    query = library.embed_queries([QUERY], normalize=True)
    assert_equal(by_type.embeddings.float_, query)
    assert_equal(plain.embeddings, query)


def test_wrong_key_model_and_text_have_the_clients_errors(shared_gateway: Gateway, v2: cohere.ClientV2) -> None:
    with pytest.raises(cohere.UnauthorizedError) as unauthorized:
        cohere.ClientV2(base_url=shared_gateway.url, api_key="wrong").rerank(model=MODEL, query="q", documents=["a"])
    assert "the API key is wrong" in unauthorized.value.body["message"]
    with pytest.raises(cohere.NotFoundError) as unknown:
        v2.rerank(model="rerank-v3.5", query="q", documents=["a"])
    assert MODEL in unknown.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as empty:
        v2.embed(model=MODEL, input_type="search_query", texts=["a", ""])
    assert empty.value.body["message"].startswith("`texts[1]` is empty")
    with pytest.raises(cohere.BadRequestError) as empty:
        v2.rerank(model=MODEL, query=" ", documents=["a"])
    assert empty.value.body["message"].startswith("`query` is only white space")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, cohere.BadRequestError),
        (401, cohere.UnauthorizedError),
        (404, cohere.NotFoundError),
        (422, cohere.UnprocessableEntityError),
        (429, cohere.TooManyRequestsError),
        (500, cohere.InternalServerError),
        (503, cohere.ServiceUnavailableError),
    ],
)
def test_every_status_has_the_clients_own_error(status: int, expected: type[ApiError]) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        answer = error_response(request.url.path, GatewayError(status, "the cause"))
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=bytes(answer.body))

    connected = httpx.Client(transport=httpx.MockTransport(respond))
    client = cohere.ClientV2(base_url="http://gateway", api_key=KEY, max_retries=0, httpx_client=connected)
    with pytest.raises(expected) as refused:
        client.rerank(model=MODEL, query="q", documents=["a"])
    assert refused.value.body == {"message": "the cause", "detail": "the cause"}


def test_jina_reranker_of_llama_index(shared_gateway: Gateway, library: Embedder) -> None:
    def rank(**options: Any) -> list[NodeWithScore]:
        reranker = JinaRerank(**{"base_url": f"{shared_gateway.url}/v1", "api_key": KEY, "model": MODEL} | options)
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
        ranked: list[NodeWithScore] = reranker.postprocess_nodes(nodes, query_str=QUERY)
        return ranked

    expected = cosines(library, DOCUMENTS)
    order = np.argsort(-np.array(expected), kind="stable")[:3]
    ranked = rank(top_n=3)
    assert [node.text for node in ranked] == [DOCUMENTS[index] for index in order]
    assert [node.score for node in ranked] == pytest.approx([expected[index] for index in order], abs=1e-6)
    with_task = max(cosines(library, DOCUMENTS, tasks.instruction("NQ")))
    assert rank(top_n=1, model=f"{MODEL}:query:NQ")[0].score == pytest.approx(with_task, abs=1e-6)
    with pytest.raises(RuntimeError, match="no model is called 'jina-reranker-v1-base-en'"):
        rank(model="jina-reranker-v1-base-en")
