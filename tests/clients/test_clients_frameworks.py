"""LangChain and LlamaIndex against the gateway, configured as in docs/clients.md: queries differ from documents."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
import tiktoken
import tiktoken.registry
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding  # type: ignore[import-untyped]

from e5 import Embedder, tasks
from tests.clients.test_clients_python import KEY, MANY, MODEL, QUERY, assert_equal
from tests.gateways import Gateway

TEXTS = ["The tower is 300 m high.", "Berlin has a zoo,\nand a second one.", "Feed the cat twice a day."]

LangChain = Callable[..., OpenAIEmbeddings]
LlamaIndex = Callable[..., OpenAILikeEmbedding]


@pytest.fixture(autouse=True, scope="module")
def own_settings() -> Any:
    """Hide the developer's own OPENAI_* variables from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_PROXY", "OPENAI_API_TYPE"):
            patch.delenv(name, raising=False)
        yield


# LangChain


class E5Embeddings(OpenAIEmbeddings):
    """One object for queries and documents, as LangChain's vector stores need it."""

    def embed_query(self, text: str, **kwargs: Any) -> list[float]:
        return super().embed_query(text, model=f"{self.model}:query", **kwargs)

    async def aembed_query(self, text: str, **kwargs: Any) -> list[float]:
        return await super().aembed_query(text, model=f"{self.model}:query", **kwargs)


@pytest.fixture
def langchain(shared_gateway: Gateway) -> LangChain:
    def make(kind: type[OpenAIEmbeddings] = OpenAIEmbeddings, **options: Any) -> OpenAIEmbeddings:
        wiring: dict[str, Any] = {"base_url": f"{shared_gateway.url}/v1", "api_key": KEY, "model": MODEL}
        return kind(**wiring | {"check_embedding_ctx_length": False} | options)

    return make


def test_langchain_vectors_equal_the_librarys(langchain: LangChain, library: Embedder) -> None:
    documents, queries = langchain(chunk_size=30), langchain(model=f"{MODEL}:query")
    assert_equal(documents.embed_documents(MANY), library.embed_documents(MANY, normalize=True))
    assert_equal([queries.embed_query(QUERY)], library.embed_queries([QUERY], normalize=True))


def test_langchain_async_vectors_equal_the_librarys(langchain: LangChain, library: Embedder) -> None:
    async def main() -> tuple[list[list[float]], list[float]]:
        return await langchain().aembed_documents(TEXTS), await langchain(E5Embeddings).aembed_query(QUERY)

    documents, query = asyncio.run(main())
    assert_equal(documents, library.embed_documents(TEXTS, normalize=True))
    assert_equal([query], library.embed_queries([QUERY], normalize=True))


def test_langchain_task_by_model_suffix_or_extra_body(langchain: LangChain, library: Embedder) -> None:
    named = langchain(model=f"{MODEL}:query:NQ")
    in_body = langchain(model_kwargs={"extra_body": {"task": tasks.instruction("NQ")}})
    expected = library.embed_queries([QUERY], task=tasks.instruction("NQ"), normalize=True)
    assert_equal([named.embed_query(QUERY)], expected)
    assert_equal([in_body.embed_query(QUERY)], expected)


def test_langchain_vector_store_embeds_queries_as_queries(langchain: LangChain, library: Embedder) -> None:
    store = InMemoryVectorStore(langchain(E5Embeddings))
    store.add_texts(TEXTS)
    received = {document.page_content: score for document, score in store.similarity_search_with_score(QUERY, k=3)}
    query, documents = library.embed_queries([QUERY], normalize=True), library.embed_documents(TEXTS, normalize=True)
    assert [received[text] for text in TEXTS] == pytest.approx((documents @ query[0]).tolist(), abs=1e-5)


def test_langchain_default_sends_token_ids_and_gets_the_cure(
    langchain: LangChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A byte tokenizer replaces the one that tiktoken would download.
    ranks = {bytes([byte]): byte for byte in range(256)}
    monkeypatch.setitem(
        tiktoken.registry.ENCODINGS,
        "cl100k_base",
        tiktoken.Encoding("cl100k_base", pat_str=".", mergeable_ranks=ranks, special_tokens={}),
    )
    default = langchain(check_embedding_ctx_length=True)
    for call in (lambda: default.embed_query(QUERY), lambda: default.embed_documents(TEXTS)):
        with pytest.raises(openai.BadRequestError, match=r"token ids.*check_embedding_ctx_length=False"):
            call()


# LlamaIndex


@pytest.fixture
def llama_index(shared_gateway: Gateway) -> LlamaIndex:
    def make(model_name: str = MODEL, **options: Any) -> OpenAILikeEmbedding:
        url = f"{shared_gateway.url}/v1"
        return OpenAILikeEmbedding(model_name=model_name, api_base=url, api_key=KEY, **options)

    return make


def test_llama_index_vectors_equal_the_librarys(llama_index: LlamaIndex, library: Embedder) -> None:
    documents, queries = llama_index(embed_batch_size=30), llama_index(f"{MODEL}:query")
    expected = library.embed_documents(MANY, normalize=True)
    assert_equal(documents.get_text_embedding_batch(MANY), expected)
    assert_equal([documents.get_text_embedding(MANY[7])], expected[7:8])
    assert_equal([queries.get_query_embedding(QUERY)], library.embed_queries([QUERY], normalize=True))


def test_llama_index_async_vectors_equal_the_librarys(llama_index: LlamaIndex, library: Embedder) -> None:
    async def main() -> tuple[list[list[float]], list[float]]:
        documents, queries = llama_index(), llama_index(f"{MODEL}:query")
        return await documents.aget_text_embedding_batch(MANY), await queries.aget_query_embedding(QUERY)

    documents, query = asyncio.run(main())
    assert_equal(documents, library.embed_documents(MANY, normalize=True))
    assert_equal([query], library.embed_queries([QUERY], normalize=True))


def test_llama_index_task_by_model_suffix_or_extra_body(llama_index: LlamaIndex, library: Embedder) -> None:
    named = llama_index(f"{MODEL}:query:NQ")
    in_body = llama_index(additional_kwargs={"extra_body": {"task": tasks.instruction("NQ")}})
    expected = library.embed_queries([QUERY], task=tasks.instruction("NQ"), normalize=True)
    assert_equal([named.get_query_embedding(QUERY)], expected)
    assert_equal([in_body.get_query_embedding(QUERY)], expected)


def test_llama_index_retriever_embeds_queries_as_queries(llama_index: LlamaIndex, library: Embedder) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=llama_index())
    retriever = index.as_retriever(embed_model=llama_index(f"{MODEL}:query"), similarity_top_k=3)
    received = {node.text: node.score for node in retriever.retrieve(QUERY)}
    plain = [text.replace("\n", " ") for text in TEXTS]  # LlamaIndex replaces line breaks before it sends a text
    query, documents = library.embed_queries([QUERY], normalize=True), library.embed_documents(plain, normalize=True)
    assert [received[text] for text in TEXTS] == pytest.approx((documents @ query[0]).tolist(), abs=1e-5)


@pytest.mark.parametrize(("model", "text", "error"), [(MODEL, " ", "BadRequestError"), ("ada", "a", "NotFoundError")])
def test_llama_index_errors_have_the_gateways_message(
    llama_index: LlamaIndex, model: str, text: str, error: str
) -> None:
    with pytest.raises(getattr(openai, error), match=r"`input\[0\]` is only white|called 'ada'"):
        llama_index(model).get_text_embedding(text)
