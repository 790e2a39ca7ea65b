"""Clients of text-embeddings-inference, unmodified: huggingface_hub's InferenceClient, and LlamaIndex's.

Vectors equal the library's: of an instruct model, and of a prefix model, for which clients send E5's prefixes.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError

from e5 import DEFAULT_TASK, Embedder, tasks
from tests.clients.test_clients_python import DOCUMENT, KEY, MANY, MODEL, QUERY, assert_equal
from tests.gateways import Gateway, cog_and_gateway

STS = tasks.instruction("STS")
INSTRUCTED = f"Instruct: {DEFAULT_TASK}\nQuery: {QUERY}"
PREFIXED = [f"{prefix}{text}" for text in MANY[:20] for prefix in ("passage: ", "query: ")]


@pytest.fixture(autouse=True, scope="module")
def online() -> Iterator[None]:
    """The tests' HF_HUB_OFFLINE would stop the client. It is read at import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def client(shared_gateway: Gateway) -> InferenceClient:
    return InferenceClient(shared_gateway.url, token=KEY)


@pytest.fixture(scope="module")
def prefix_model(bert_folder: Path) -> Embedder:
    return Embedder.load("e5-small", bert_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def prefix_gateway(bert_folder: Path) -> Iterator[Gateway]:
    with cog_and_gateway({"E5_MODEL": "e5-small", "E5_WEIGHTS": str(bert_folder)}, key=KEY) as one:
        yield one


# InferenceClient


def test_feature_extraction_embeds_texts_as_they_are(client: InferenceClient, library: Embedder) -> None:
    for texts in (DOCUMENT, MANY, [DOCUMENT, INSTRUCTED]):
        expected = library.embed_texts([texts] if isinstance(texts, str) else texts, normalize=True)
        assert_equal(client.feature_extraction(texts), expected)
    assert_equal(client.feature_extraction([INSTRUCTED]), library.embed_queries([QUERY], normalize=True))


def test_feature_extraction_passes_its_options(client: InferenceClient, library: Embedder) -> None:
    raw = client.feature_extraction(DOCUMENT, normalize=False, truncate=True, truncation_direction="right")
    np.testing.assert_allclose(raw, library.embed_documents([DOCUMENT]), rtol=1e-5, atol=1e-5)
    assert_equal(client.feature_extraction(QUERY, prompt_name="query"), library.embed_queries([QUERY], normalize=True))
    in_task = library.embed_queries([QUERY], task=tasks.instruction("NQ"), normalize=True)
    assert_equal(client.feature_extraction(QUERY, prompt_name="NQ"), in_task)


def test_long_text_is_cut_or_refused(client: InferenceClient, library: Embedder) -> None:
    long = "word " * 5000
    assert_equal(client.feature_extraction(long), library.embed_documents([long], normalize=True))
    with pytest.raises(HfHubHTTPError, match=r"`inputs` has 5,00\d tokens.*set `truncate` to true") as refused:
        client.feature_extraction(long, truncate=False)
    assert refused.value.response.status_code == 422


def test_sentence_similarity_is_the_sts_cosine(client: InferenceClient, library: Embedder) -> None:
    first, *others = library.embed_queries([QUERY, *MANY], task=STS, normalize=True)
    received = client.sentence_similarity(QUERY, MANY)
    assert_equal([received], (np.stack(others) @ first)[None])


def test_endpoint_info(shared_gateway: Gateway) -> None:
    info = InferenceClient(shared_gateway.url, provider="hf-inference", token=KEY).get_endpoint_info()
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == (MODEL, "float32", 4096)
    assert info["model_type"] == {"embedding": {"pooling": "last_token"}}


def test_wrong_key_and_empty_text_are_errors(client: InferenceClient, shared_gateway: Gateway) -> None:
    with pytest.raises(HfHubHTTPError, match="the API key is wrong"):
        InferenceClient(shared_gateway.url, token="hf_wrong").feature_extraction("a")
    with pytest.raises(HfHubHTTPError, match=r"`inputs\[1\]` is empty"):
        client.feature_extraction(["a", ""])


def test_async_client(shared_gateway: Gateway, library: Embedder) -> None:
    async def main() -> tuple[list[Any], list[float]]:
        async with AsyncInferenceClient(shared_gateway.url, token=KEY) as client:
            vectors = await asyncio.gather(*(client.feature_extraction(text) for text in MANY[:20]))
            return vectors, await client.sentence_similarity(QUERY, [QUERY])

    vectors, cosines = asyncio.run(main())
    assert_equal(np.concatenate(vectors), library.embed_documents(MANY[:20], normalize=True))
    assert cosines == pytest.approx([1], abs=1e-6)


# A prefix model


def test_clients_prefixes_are_not_doubled(prefix_gateway: Gateway, prefix_model: Embedder) -> None:
    client = InferenceClient(prefix_gateway.url, token=KEY)
    received = client.feature_extraction(PREFIXED)
    assert_equal(received, prefix_model.embed_texts(PREFIXED, normalize=True))
    assert_equal(received[::2], prefix_model.embed_documents(MANY[:20], normalize=True))
    assert_equal(received[1::2], prefix_model.embed_queries(MANY[:20], normalize=True))
    assert_equal(client.feature_extraction(MANY), prefix_model.embed_documents(MANY, normalize=True))
    first, *others = prefix_model.embed_queries([QUERY, *MANY], normalize=True)
    assert_equal([client.sentence_similarity(QUERY, MANY)], (np.stack(others) @ first)[None])


def test_tokens_are_those_that_the_model_reads(prefix_gateway: Gateway, prefix_model: Embedder) -> None:
    def tokenize(**body: Any) -> list[list[dict[str, Any]]]:
        headers = {"Authorization": f"Bearer {KEY}"}
        answer: list[list[dict[str, Any]]] = httpx.post(
            f"{prefix_gateway.url}/tokenize", json=body, headers=headers
        ).json()
        return answer

    tokens = tokenize(inputs=["guideline", "query: summit"])
    expected = prefix_model.tokenize([], ["guideline"], "").ids + prefix_model.tokenize(["summit"], [], "").ids
    assert [[token["id"] for token in each] for each in tokens] == [ids.tolist() for ids in expected]
    assert (tokens[0][0]["text"], tokens[0][1]["text"], tokens[0][-1]["text"]) == ("[CLS]", "passage", "[SEP]")
    assert [token["special"] for token in tokens[0]] == [True, *[False] * (len(tokens[0]) - 2), True]
    bare = tokenize(inputs="guideline", add_special_tokens=False)
    assert bare == [tokens[0][1:-1]]


# LlamaIndex


def test_llama_index(prefix_gateway: Gateway, prefix_model: Embedder) -> None:
    module = pytest.importorskip("llama_index.embeddings.text_embeddings_inference", reason="is in the dev extra")
    embedding = module.TextEmbeddingsInference(
        model_name="e5-small",
        base_url=prefix_gateway.url,
        auth_token=KEY,
        query_instruction="query:",
        text_instruction="passage:",
    )
    received = embedding.get_text_embedding_batch(MANY)
    assert_equal(received, prefix_model.embed_documents(MANY, normalize=True))
    expected = prefix_model.embed_queries([QUERY], normalize=True)
    assert_equal([embedding.get_query_embedding(QUERY)], expected)
    assert_equal([asyncio.run(embedding.aget_query_embedding(QUERY))], expected)
