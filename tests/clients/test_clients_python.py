"""The official Python clients of OpenAI and Replicate, unmodified, against the gateway.

Every vector must equal the library's.
"""

import asyncio
import base64
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import AsyncOpenAI, OpenAI
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.prediction import Prediction
from replicate.webhook import InvalidSignatureError

from e5 import DEFAULT_TASK, Embedder, scores, tasks
from tests.gateways import Gateway, until
from tests.webhook_receiver import Receiver

Vectors = NDArray[np.float32]

KEY, MODEL = "test-key", "e5-mistral-tiny"
QUERY, DOCUMENT = "how tall is the tower?", "The tower is 300 m high – 漢字, é, 𝄞."
MANY = [f"{'some words and ' * (index % 9)}text number {index}" for index in range(100)]
TASK = "Classify the sentiment of a review"
LONG = {"documents": [f"number {index} " + "of many words " * 30 for index in range(2000)], "encoding_format": "base64"}
"""Inputs that take many seconds to embed. The texts differ, because equal ones are computed once."""


def assert_equal(received: Sequence[Sequence[float]] | Vectors, expected: Vectors) -> None:
    np.testing.assert_allclose(np.asarray(received, np.float64), expected, rtol=0, atol=1e-6)


def decoded(text: str | Sequence[float]) -> Vectors:
    """Decode a vector from base64."""
    assert isinstance(text, str)
    return np.frombuffer(base64.b64decode(text), "<f4")


# OpenAI


@pytest.fixture(scope="module")
def client(shared_gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{shared_gateway.url}/v1", api_key=KEY, max_retries=0) as connected:
        yield connected


def embedded(client: OpenAI, texts: str | list[str], model: str = MODEL, **options: Any) -> list[list[float]]:
    return [item.embedding for item in client.embeddings.create(input=texts, model=model, **options).data]


def refusal(client: OpenAI, texts: Any, model: str = MODEL, **options: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(input=texts, model=model, **options)
    return caught.value


def test_openai_text_is_embedded_as_a_document(client: OpenAI, library: Embedder) -> None:
    answer = client.embeddings.create(input=DOCUMENT, model=MODEL)
    assert (answer.object, answer.model, len(answer.data)) == ("list", MODEL, 1)
    assert (answer.data[0].object, answer.data[0].index) == ("embedding", 0)
    assert_equal([answer.data[0].embedding], library.embed_documents([DOCUMENT], normalize=True))


def test_openai_batch_keeps_its_order(client: OpenAI, library: Embedder) -> None:
    answer = client.embeddings.create(input=MANY, model=MODEL)
    assert [item.index for item in answer.data] == list(range(100))
    assert_equal([item.embedding for item in answer.data], library.embed_documents(MANY, normalize=True))


def test_openai_formats_have_the_same_numbers(client: OpenAI) -> None:
    default = np.array(embedded(client, MANY[:3]), np.float32)
    as_float = np.array(embedded(client, MANY[:3], encoding_format="float"), np.float32)
    as_base64 = np.stack([decoded(text) for text in embedded(client, MANY[:3], encoding_format="base64")])
    assert default.tobytes() == as_float.tobytes() == as_base64.tobytes()


def test_openai_smaller_vectors_are_the_rounded_ones(client: OpenAI, library: Embedder) -> None:
    exact = library.embed_documents(MANY[:3], normalize=True)

    def ask(encoding_format: Any) -> Any:
        return client.embeddings.create(input=MANY[:3], model=MODEL, encoding_format=encoding_format).data

    def rows(items: Any, dtype: str) -> NDArray[Any]:
        return np.stack([np.frombuffer(base64.b64decode(item.embedding), dtype) for item in items])

    assert np.abs(rows(ask("float16"), "<f2") - exact).max() < 2**-12
    int8 = ask("int8")
    scales = np.array([item.scale for item in int8])[:, None]
    np.testing.assert_allclose(scales[:, 0], np.abs(exact).max(axis=1) / 127, rtol=1e-5)
    assert (np.abs(rows(int8, "i1") * scales - exact) <= 0.51 * scales).all()
    bits = np.unpackbits(rows(ask("ubinary"), "u1"), axis=1)
    assert ((bits == 1) == (exact > 0))[np.abs(exact) > 1e-5].all()


def test_openai_truncation_is_in_a_header_and_in_the_answer(client: OpenAI, library: Embedder) -> None:
    texts = ["short", "word " * 5000, "also short", "word " * 4200]
    raw = client.embeddings.with_raw_response.create(input=texts, model=MODEL)
    assert raw.headers["x-embedding-truncated"] == "2"
    answer = raw.parse()
    assert answer.model_extra == {"truncated": [1, 3]}
    assert_equal([item.embedding for item in answer.data], library.embed_documents(texts, normalize=True))
    whole = client.embeddings.with_raw_response.create(input="short", model=MODEL)
    assert "x-embedding-truncated" not in whole.headers and whole.parse().model_extra == {}


def test_openai_long_texts_are_refused_or_averaged(client: OpenAI, library: Embedder) -> None:
    texts = ["short", "word " * 5000]
    error = refusal(client, texts, extra_body={"long_texts": "error"})
    assert (error.status_code, error.param) == (400, "input")
    assert "`input[1]` has 5,003 tokens, more than the 4,096 of e5-mistral-tiny: shorten it" in error.message
    error = refusal(client, texts[1], extra_body={"long_texts": "error"})
    assert "`input` has 5,003 tokens" in error.message
    raw = client.embeddings.with_raw_response.create(input=texts, model=MODEL, extra_body={"long_texts": "average"})
    assert "x-embedding-truncated" not in raw.headers
    received = [item.embedding for item in raw.parse().data]
    assert_equal(received, library.embed_documents(texts, normalize=True, long_texts="average"))


def test_openai_usage_counts_tokens(client: OpenAI, library: Embedder) -> None:
    usage = client.embeddings.create(input=MANY, model=MODEL).usage
    assert usage.prompt_tokens == usage.total_tokens == library.tokenize([], MANY, "").total


@pytest.mark.parametrize(
    ("model", "extra", "task"),
    [
        (MODEL, {"input_type": "query"}, DEFAULT_TASK),
        (MODEL, {"input_type": "query", "task": TASK}, TASK),
        (MODEL, {"task": TASK}, TASK),
        (f"{MODEL}:query", {}, DEFAULT_TASK),
        (f"{MODEL}-query", {}, DEFAULT_TASK),
        (MODEL, {"input_type": "search_query"}, DEFAULT_TASK),
        (f"{MODEL}:query", {"task": TASK}, TASK),
        (f"{MODEL}:query:NQ", {}, tasks.instruction("NQ")),
    ],
)
def test_openai_query_by_field_or_model_suffix(
    client: OpenAI, library: Embedder, model: str, extra: dict[str, str], task: str
) -> None:
    received = embedded(client, [QUERY, DOCUMENT], model, extra_body=extra)
    assert_equal(received, library.embed_queries([QUERY, DOCUMENT], task=task, normalize=True))


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        (MODEL, {"input_type": "document"}),
        (MODEL, {"input_type": "passage"}),
        (f"{MODEL}:document", {}),
        (f"{MODEL}-passage", {}),
    ],
)
def test_openai_document_by_field_or_model_suffix(
    client: OpenAI, library: Embedder, model: str, extra: dict[str, str]
) -> None:
    assert_equal(
        embedded(client, [DOCUMENT], model, extra_body=extra), library.embed_documents([DOCUMENT], normalize=True)
    )


def test_openai_normalize_false_keeps_the_lengths(client: OpenAI, library: Embedder) -> None:
    received = embedded(client, [DOCUMENT], extra_body={"normalize": False})
    np.testing.assert_allclose(received, library.embed_documents([DOCUMENT]), rtol=1e-5, atol=1e-5)
    assert abs(np.linalg.norm(received) - 1) > 0.01


def test_openai_dimensions_must_be_the_models(client: OpenAI) -> None:
    vectors = embedded(client, QUERY)
    assert embedded(client, QUERY, dimensions=len(vectors[0])) == vectors
    error = refusal(client, QUERY, dimensions=64)
    assert isinstance(error, openai.BadRequestError)
    assert error.param == "dimensions"
    assert f"have {len(vectors[0])} and cannot be cut" in error.message


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_openai_token_ids_are_a_bad_request(client: OpenAI, tokens: Any) -> None:
    error = refusal(client, tokens)
    assert isinstance(error, openai.BadRequestError)
    assert error.param == "input"
    assert "token ids, which belong to another model's tokenizer" in error.message
    assert "check_embedding_ctx_length=False" in error.message


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        ("", "`input` is empty"),
        (" \n", "`input` is only white space"),
        (["a", "b", ""], "`input[2]` is empty"),
        ([], "`input` is an empty list"),
        (["a"] * 2049, "2,049 texts, more than the 2,048"),
    ],
    ids=["empty", "white", "empty in a list", "empty list", "many"],
)
def test_openai_invalid_text_is_a_bad_request(client: OpenAI, texts: str | list[str], cause: str) -> None:
    error = refusal(client, texts)
    assert isinstance(error, openai.BadRequestError)
    assert cause in error.message
    assert (error.type, error.param) == ("invalid_request_error", "input")


def test_openai_wrong_key_is_an_authentication_error(client: OpenAI) -> None:
    stranger = client.with_options(api_key="sk-wrong")
    error = refusal(stranger, "a")
    assert isinstance(error, openai.AuthenticationError)
    assert error.code == "invalid_api_key"
    assert "sk-wrong" not in error.message
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


@pytest.mark.parametrize("model", ["text-embedding-3-small", f"{MODEL}:clustering", f"{MODEL}:query:NoSuchTask", ""])
def test_openai_unknown_model_is_not_found(client: OpenAI, model: str) -> None:
    error = refusal(client, "a", model)
    assert isinstance(error, openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")


def test_openai_models_are_listed_and_retrieved(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert [(model.id, model.object) for model in listed] == [(MODEL, "model")]
    assert abs(listed[0].created - time.time()) < 3600
    for name in (MODEL, f"{MODEL}:query:NQ"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.models.retrieve("text-embedding-3-small")


def test_openai_answers_and_errors_have_a_request_id(client: OpenAI, shared_gateway: Gateway) -> None:
    answer = client.embeddings.create(input="a", model=MODEL, extra_headers={"X-Request-Id": "of-the-client"})
    assert answer._request_id == "of-the-client"
    error = refusal(client, "")
    failed = error.request_id or ""
    assert failed
    until(lambda: failed in shared_gateway.log.read_text())


def test_openai_client_configured_by_the_environment(
    shared_gateway: Gateway, library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{shared_gateway.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAI() as configured:
        assert_equal(embedded(configured, [DOCUMENT]), library.embed_documents([DOCUMENT], normalize=True))


def test_openai_async_client_gets_the_same_vectors_and_errors(shared_gateway: Gateway, library: Embedder) -> None:
    async def main() -> list[list[float]]:
        async with AsyncOpenAI(base_url=f"{shared_gateway.url}/v1", api_key=KEY, max_retries=0) as client:
            requests = [client.embeddings.create(input=text, model=f"{MODEL}:query") for text in MANY[:20]]
            answers = await asyncio.gather(*requests)
            assert [model.id async for model in client.models.list()] == [MODEL]
            with pytest.raises(openai.BadRequestError, match="`input` is empty"):
                await client.embeddings.create(input="", model=MODEL)
            return [answer.data[0].embedding for answer in answers]

    assert_equal(asyncio.run(main()), library.embed_queries(MANY[:20], normalize=True))


# Replicate


@pytest.fixture(scope="module")
def replicate(shared_gateway: Gateway) -> Client:
    client = Client(api_token=KEY, base_url=shared_gateway.url)
    client.poll_interval = 0.05
    return client


@pytest.fixture(scope="module")
def version(replicate: Client) -> str:
    latest = replicate.models.get(f"me/{MODEL}").latest_version
    assert latest is not None
    return latest.id


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


def next_webhook(receiver: Receiver) -> httpx.Request:
    """The next webhook, in the form that Replicate's client validates."""
    path, headers, body = receiver.next()
    return httpx.Request("POST", f"http://127.0.0.1{path}", headers=headers, content=body)


def pair(library: Embedder) -> Vectors:
    """The vectors of QUERY and DOCUMENT."""
    left, right = library.embed_queries([QUERY], normalize=True), library.embed_documents([DOCUMENT], normalize=True)
    return np.concatenate([left, right])


PAIR = {"query": QUERY, "document": DOCUMENT, "normalize": True}


def run(client: Client, reference: Any, inputs: dict[str, Any], **options: Any) -> Any:
    return client.run(reference, input=inputs, **options)


def status(prediction: Prediction) -> str:
    return prediction.status


@pytest.mark.parametrize("owner", ["e5", "someone-else"])
def test_replicate_run_returns_the_output(replicate: Client, library: Embedder, owner: str) -> None:
    output = run(replicate, f"{owner}/{MODEL}", PAIR)
    expected = pair(library)
    assert_equal(output["embeddings"], expected)
    assert output["score"] == pytest.approx(float(scores(expected[:1], expected[1:])[0, 0]), abs=1e-3)


@pytest.mark.parametrize("wait", [True, 5, False])
def test_replicate_run_of_a_version_with_and_without_wait(
    replicate: Client, library: Embedder, version: str, wait: bool | int
) -> None:
    output = run(replicate, f"e5/{MODEL}:{version}", PAIR, wait=wait)
    assert_equal(output["embeddings"], pair(library))


def test_replicate_base64_output_has_the_same_vectors(replicate: Client, library: Embedder) -> None:
    inputs = {"documents": MANY, "normalize": True, "encoding_format": "base64"}
    output = run(replicate, f"e5/{MODEL}", inputs)
    assert output["embeddings"] is None
    received = np.stack([decoded(text) for text in output["embeddings_base64"]])
    assert_equal(received, library.embed_documents(MANY, normalize=True))


def test_replicate_async_run_returns_the_output(shared_gateway: Gateway, library: Embedder) -> None:
    async def main() -> list[Any]:
        client = Client(api_token=KEY, base_url=shared_gateway.url)
        runs = [client.async_run(f"e5/{MODEL}", input={"query": text, "normalize": True}) for text in MANY[:10]]
        outputs: list[Any] = await asyncio.gather(*runs)
        await client._async_client.aclose()
        return [output["embeddings"][0] for output in outputs]

    assert_equal(asyncio.run(main()), library.embed_queries(MANY[:10], normalize=True))


def test_replicate_prediction_is_created_polled_and_reloaded(
    replicate: Client, library: Embedder, version: str
) -> None:
    prediction = replicate.predictions.create(version=version, input=PAIR, wait=False)
    assert status(prediction) in ("starting", "processing")
    assert prediction.output is None
    prediction.wait()
    assert status(prediction) == "succeeded"
    assert (prediction.input, prediction.error, prediction.version) == (PAIR, None, version)
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] > 0
    output: Any = prediction.output
    assert_equal(output["embeddings"], pair(library))
    again = replicate.predictions.get(prediction.id)
    assert again.dict() == prediction.dict()
    prediction.reload()
    assert again.dict() == prediction.dict()


def test_replicate_create_with_wait_returns_the_end(replicate: Client, library: Embedder) -> None:
    prediction = replicate.models.predictions.create(f"me/{MODEL}", input=PAIR, wait=True)
    assert (prediction.status, prediction.model) == ("succeeded", f"me/{MODEL}")
    output: Any = prediction.output
    assert_equal(output["embeddings"], pair(library))


def test_replicate_canceled_prediction_has_no_output(replicate: Client) -> None:
    prediction = replicate.models.predictions.create(f"e5/{MODEL}", input=LONG)
    prediction.cancel()
    assert (prediction.status, prediction.output) == ("canceled", None)
    assert prediction.completed_at is not None
    prediction.reload()
    assert prediction.status == "canceled"


def test_replicate_short_wait_returns_a_prediction_to_poll(replicate: Client) -> None:
    began = time.monotonic()
    prediction = replicate.models.predictions.create(f"e5/{MODEL}", input=LONG, wait=1)
    waited = time.monotonic() - began
    try:
        assert status(prediction) == "starting"  # for which the client's run() polls
        assert 0.9 < waited < 5
    finally:
        prediction.cancel()
    assert status(prediction) == "canceled"


def test_replicate_failed_prediction_is_a_model_error(replicate: Client, version: str) -> None:
    reason = "`documents[1]` is empty: pass the text to embed, or leave it out"
    for reference, wait in itertools.product((f"e5/{MODEL}", f"e5/{MODEL}:{version}"), (True, False)):
        with pytest.raises(ModelError) as caught:
            run(replicate, reference, {"documents": ["a", ""]}, wait=wait)
        assert str(caught.value) == reason
        assert caught.value.prediction.status == "failed"


@pytest.mark.parametrize(
    ("inputs", "detail"),
    [
        ({"query": 5}, '- input.query: 5 is not of type "string"\n'),
        ({"documents": ["a", None]}, '- input.documents[1]: null is not of type "string"\n'),
        (
            {"encoding_format": "hex"},
            "- input.encoding_format: choose one of float, base64, float16, int8, ubinary, tokens\n",
        ),
        ({"qurey": "a"}, "- input: Additional properties are not allowed ('qurey' was unexpected); the inputs are "),
    ],
)
def test_replicate_invalid_inputs_are_named(replicate: Client, inputs: dict[str, Any], detail: str) -> None:
    with pytest.raises(ReplicateError) as caught:
        run(replicate, f"e5/{MODEL}", inputs)
    assert caught.value.status == 422
    assert caught.value.title == "Input validation failed"
    assert caught.value.detail is not None
    assert caught.value.detail.startswith(detail)


def test_replicate_unknown_model_version_or_prediction_is_refused(replicate: Client) -> None:
    def refused(call: Callable[[], object]) -> int | None:
        with pytest.raises(ReplicateError) as caught:
            call()
        return caught.value.status

    assert refused(lambda: run(replicate, "e5/no-such-model", PAIR)) == 404
    assert refused(lambda: replicate.models.get("e5/no-such-model")) == 404
    assert refused(lambda: replicate.models.get(f"e5/{MODEL}").versions.get("0" * 64)) == 404
    assert refused(lambda: replicate.predictions.get("0" * 26)) == 404
    assert refused(lambda: replicate.predictions.cancel("0" * 26)) == 404
    assert refused(lambda: run(replicate, f"e5/{MODEL}:{'0' * 64}", PAIR)) == 422


def test_replicate_wrong_token_is_refused(shared_gateway: Gateway) -> None:
    with pytest.raises(ReplicateError) as caught:
        Client(api_token="r8_wrong", base_url=shared_gateway.url).run(f"e5/{MODEL}", input=PAIR)
    assert caught.value.status == 401


def test_replicate_predictions_are_listed_newest_first_in_pages(replicate: Client) -> None:
    created = [replicate.models.predictions.create(f"e5/{MODEL}", input={"query": "a"}).id for _ in range(60)]
    first = replicate.predictions.list()
    assert first.next is not None
    second = replicate.predictions.list(first.next)
    listed = [prediction.id for prediction in (*first.results, *second.results)]
    assert len(first.results) == 50
    assert listed[:60] == created[::-1]
    assert len(set(listed)) == len(listed)


def test_replicate_model_and_versions_are_described(replicate: Client, version: str) -> None:
    model = replicate.models.get(f"e5/{MODEL}")
    assert (model.owner, model.name, model.id) == ("e5", MODEL, f"e5/{MODEL}")
    assert [listed.id for listed in replicate.models.list()] == [f"e5/{MODEL}"]
    assert [listed.id for listed in model.versions.list()] == [version]
    described = model.versions.get(version)
    inputs = described.openapi_schema["components"]["schemas"]["Input"]["properties"]
    assert {"query", "queries", "document", "documents", "task", "normalize", "encoding_format"} <= set(inputs)
    assert (
        run(replicate, described, {"query": "a"})["embeddings"] == run(replicate, model, {"query": "a"})["embeddings"]
    )


def test_replicate_webhook_signature_is_valid_and_a_forged_body_is_not(
    replicate: Client, version: str, receiver: Receiver, library: Embedder
) -> None:
    prediction = replicate.predictions.create(version=version, input=PAIR, webhook=receiver.url + "?of=test")
    start, end = next_webhook(receiver), next_webhook(receiver)
    secret = replicate.webhooks.default.secret()
    for request in (start, end):
        replicate.webhooks.validate(request=request, secret=secret, tolerance=60)
        assert json.loads(request.content)["id"] == prediction.id
        assert request.url.query == b"of=test"
    assert json.loads(start.content)["status"] == "processing"
    ended = json.loads(end.content)
    prediction.wait()
    assert ended == json.loads(prediction.json()) | {"data_removed": False, "source": "api"}
    assert_equal(ended["output"]["embeddings"], pair(library))
    forged = end.content.replace(b"succeeded", b"failed")
    with pytest.raises(InvalidSignatureError):
        replicate.webhooks.validate(headers=dict(end.headers), body=forged.decode(), secret=secret)


def test_replicate_webhook_is_sent_for_the_filtered_events_only(
    replicate: Client, version: str, receiver: Receiver
) -> None:
    hook: dict[str, Any] = {"webhook": receiver.url, "webhook_events_filter": ["completed"]}
    replicate.predictions.create(version=version, input={"document": ""}, **hook)
    ended = json.loads(next_webhook(receiver).content)
    assert (ended["status"], ended["output"]) == ("failed", None)
    assert ended["error"].startswith("`document` is empty")


def test_replicate_client_configured_by_the_environment(shared_gateway: Gateway, library: Embedder) -> None:
    program = (
        "import json, replicate, sys\n"
        f"output = replicate.run('e5/{MODEL}', input=json.load(sys.stdin))\n"
        "print(json.dumps(output['embeddings']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"REPLICATE_BASE_URL": shared_gateway.url, "REPLICATE_API_TOKEN": KEY},
        input=json.dumps(PAIR),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_equal(json.loads(done.stdout), pair(library))
