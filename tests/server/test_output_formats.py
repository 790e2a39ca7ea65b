"""predict.py's answers: smaller vectors, counted tokens, and long texts, through Cog's real server."""

import base64
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from e5 import DEFAULT_TASK, Embedder, normalize, scores
from e5.vectors import Vectors
from tests.gateways import Gateway
from tests.reference import decoder_ids, relative_l2, sentencepiece_model

QUERY, DOCUMENTS = "how tall is the tower?", ["The tower is 300 m high.", "A recipe for soup."]
LONG = "word " * 5000
_ids = itertools.count()


@pytest.fixture(scope="module")
def client(shared_gateway: Gateway) -> Iterator[httpx.Client]:
    assert shared_gateway.server is not None
    with httpx.Client(base_url=shared_gateway.server.url, timeout=120) as client:
        yield client


def predict(client: httpx.Client, **inputs: object) -> dict[str, Any]:
    body = {"id": f"formats-{next(_ids)}", "input": inputs}
    prediction: dict[str, Any] = client.post("/predictions", json=body).raise_for_status().json()
    return prediction


def output(client: httpx.Client, **inputs: object) -> dict[str, Any]:
    prediction = predict(client, **inputs)
    assert prediction["status"] == "succeeded", prediction
    result: dict[str, Any] = prediction["output"]
    return result


def decoded(answer: dict[str, Any], dtype: str) -> np.ndarray[Any, Any]:
    assert answer["embeddings"] is None
    return np.stack([np.frombuffer(base64.b64decode(text), dtype) for text in answer["embeddings_base64"]])


@pytest.fixture(scope="module")
def vectors(client: httpx.Client) -> Vectors:
    return np.array(output(client, query=QUERY, documents=DOCUMENTS)["embeddings"], np.float32)


@pytest.mark.parametrize("unit_length", [False, True])
def test_smaller_formats_are_the_float_vectors_rounded(
    client: httpx.Client, vectors: Vectors, unit_length: bool
) -> None:
    exact = normalize(vectors) if unit_length else vectors

    def ask(encoding_format: str) -> dict[str, Any]:
        answer = output(
            client, query=QUERY, documents=DOCUMENTS, normalize=unit_length, encoding_format=encoding_format
        )
        assert (answer["scales"] is not None) == (encoding_format == "int8")
        same = np.array(answer["scores"], np.float32) == scores(vectors[:1], vectors[1:])
        assert same.all(), "scores are those of float32"
        return answer

    assert np.array_equal(decoded(ask("float16"), "<f2"), exact.astype(np.float16))
    int8 = ask("int8")
    numbers, scales = decoded(int8, "i1"), np.array(int8["scales"], np.float32)
    assert np.array_equal(np.abs(numbers.astype(int)).max(axis=1), [127] * 3)
    assert np.array_equal(np.abs(numbers).argmax(axis=1), np.abs(exact).argmax(axis=1))
    assert (np.abs(numbers * scales[:, None] - exact) <= 0.5001 * scales[:, None]).all(), "half a step at most"
    assert np.array_equal(decoded(ask("ubinary"), "u1"), quantize_embeddings(exact, precision="ubinary"))


def test_tokens_are_counted_before_the_cut(client: httpx.Client) -> None:
    answer = output(client, query=QUERY, documents=[DOCUMENTS[0], LONG, "short"], encoding_format="ubinary")
    prompted = f"Instruct: {DEFAULT_TASK}\nQuery: {QUERY}"
    whole = [2 + len(sentencepiece_model().encode(text)) for text in (prompted, DOCUMENTS[0], LONG, "short")]
    assert answer["tokens"] == whole and answer["truncated"] == [2]
    averaged = output(client, query=QUERY, documents=[LONG], encoding_format="ubinary", long_texts="average")
    assert averaged["tokens"] == [whole[0], whole[2]] and averaged["truncated"] == []


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ({"document": LONG}, "document"),
        ({"query": "fits", "queries": ["fits", LONG]}, r"queries[1]"),
        ({"document": "fits", "documents": ["fits", LONG, LONG]}, r"documents[1]"),
        ({"query": LONG, "document": "fits"}, "query"),
        ({"documents": ["fits"] * 1000 + [LONG]}, r"documents[1000]"),
    ],
)
def test_error_names_text_tokens_and_limit(client: httpx.Client, inputs: dict[str, Any], name: str) -> None:
    failed = predict(client, **inputs, encoding_format="base64", long_texts="error")
    prompt = f"Instruct: {DEFAULT_TASK}\nQuery: " if "quer" in name else ""
    tokens = 2 + len(sentencepiece_model().encode(prompt + LONG))
    message = f"InputError: `{name}` has {tokens:,} tokens, more than the 4,096 of e5-mistral-tiny: shorten it, or pass"
    assert failed["status"] == "failed" and message in failed["error"]


def test_average_is_the_library_s(client: httpx.Client, library: Embedder) -> None:
    inputs = {"query": LONG, "documents": ["short", LONG + "end", "another"], "encoding_format": "base64"}
    answer = output(client, **inputs, long_texts="average")
    got = decoded(answer, "<f4")
    want = np.concatenate(
        [
            library.embed_queries([LONG], long_texts="average"),
            library.embed_documents(["short", LONG + "end", "another"], long_texts="average"),
        ]
    )
    assert relative_l2(got, want) < 1e-5
    assert np.allclose(answer["scores"], scores(want[:1], want[1:]), atol=1e-3)
    assert relative_l2(decoded(output(client, **inputs), "<f4"), want) > 1e-3, "truncation gives other vectors"


def test_tokens_format_shows_what_the_model_reads(client: httpx.Client) -> None:
    answer = output(client, query=QUERY, documents=["summit </s> define", LONG], encoding_format="tokens")
    texts = [f"Instruct: {DEFAULT_TASK}\nQuery: {QUERY}", "summit </s> define", LONG]
    assert answer["token_ids"] == [decoder_ids(text, 4096) for text in texts]
    model = sentencepiece_model()
    assert answer["pieces"] == [[model.id_to_piece(token) for token in ids] for ids in answer["token_ids"]]
    assert {answer[name] for name in ("embeddings", "embeddings_base64", "scales", "score")} == {None}
    assert answer["scores"] is None and answer["truncated"] == [2]
