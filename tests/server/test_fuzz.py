"""Generated requests: each gets its vectors or an error in words, and the server stays healthy.

Schemathesis generates requests from the schema that the real server serves, hypothesis those to the library and the
queue. Every run generates the same ones, so a failure is reproducible.
"""

import asyncio
import base64
import copy
import itertools
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from e5 import DEFAULT_TASK, Embedder, InputError, normalize
from e5.limits import Limits
from e5.serving.batcher import Batcher, Embedded
from e5.serving.request import EmbedRequest, EncodingFormat
from e5.serving.service import EncodedOutput, encode
from e5.tokens import Tokens
from e5.vectors import Vectors
from e5_cog.server import Server, running
from loadtesting import cog_client
from tests.reference import decoder_ids, relative_l2
from tests.token_ids import lists

FUZZ = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ONCE = settings(FUZZ, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
"""Report the first failure without shrinking it, which would wait for every request that hangs."""
SECONDS = 20
"""Longer than any answer takes on a slow machine: a request that takes longer hangs."""

_ids = itertools.count()

SAMPLES = ["", " ", "\u3000\n", "a", "</s>", "<s> a </s>", "<unk>", "<0x0A>", "[INST]", "\x00", "\ud83d\ude00"]
TEXT = st.one_of(
    st.sampled_from(SAMPLES),
    st.text(max_size=30),
    st.text(st.sampled_from("aé漢😀\u0303\u200b\u202e\x00\t \u3000\u2028\ud800\udfff"), max_size=6),
)
"""Any text, often one that is rejected: only white space, or with a lone surrogate."""
NOT_TEXT = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=3), st.just(object()))
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(TEXT, NOT_TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXT, inner, max_size=2),
        st.sets(TEXT, max_size=2),
    ),
    max_leaves=5,
)


def is_text(value: object) -> bool:
    """Whether a model can embed it."""
    return isinstance(value, str) and bool(value.strip()) and is_unicode(value)


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def embed_one_by_one(
    embedder: Embedder, queries: Sequence[str], documents: Sequence[str], task: str = DEFAULT_TASK
) -> Vectors:
    """The vectors of texts embedded one at a time."""
    vectors = [embedder.embed_queries([text], task=task) for text in queries]
    vectors += [embedder.embed_documents([text]) for text in documents]
    return np.concatenate(vectors)


def assert_equal(got: Vectors, wanted: Vectors) -> None:
    assert got.dtype == wanted.dtype == np.float32
    assert got.shape == wanted.shape
    error = relative_l2(got, wanted) if len(got) else 0.0
    assert error < 1e-4  # false for NaN


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(dtype="float32", device="cpu")


# The server

ENDPOINTS = {"post": "/predictions", "put": "/predictions/{prediction_id}"}
CANCEL = "/predictions/{prediction_id}/cancel"
CHECKS = [not_a_server_error, response_schema_conformance]
"""Schemathesis's other checks fail on Cog's server (0.23), or are weaker than the tests below:

- status_code_conformance: the schema lists 200 and 422; the server also answers 400 (not JSON), 404 (nothing to
  cancel) and 202;
- content_type_conformance: 422 for a body that is not a request object is text/plain, the schema says JSON;
- negative_data_rejection: the server drops unknown fields and inputs, and a text that cannot be embedded gives a failed
  prediction with status 200;
- positive_data_acceptance accepts some errors; the test below requires status 200.
"""
REFUSAL = re.compile(r"Prediction failed: Async prediction failed: InputError: (?=.*`).+", re.DOTALL)
"""An invalid request gives an InputError that names the input. Any other error is a bug."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running({"E5_DTYPE": "float32", "E5_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}) as server:
        assert server.health["status"] == "READY", server.health
        yield server


@dataclass(frozen=True)
class Requests:
    """Strategies by HTTP method for requests that fit the schema and that violate it, and one for cancellations."""

    valid: dict[str, st.SearchStrategy[schemathesis.Case[Any]]]
    invalid: dict[str, st.SearchStrategy[schemathesis.Case[Any]]]
    cancel: st.SearchStrategy[schemathesis.Case[Any]]


@pytest.fixture(scope="module")
def requests(server: Server) -> Requests:
    served = get(server, "/openapi.json")
    # If Cog ever lists more endpoints, such as /shutdown, the tests must not fuzz them by accident.
    assert sorted(served["paths"]) == ["/", "/health-check", "/predictions", CANCEL]
    api = schemathesis.openapi.from_dict(stricter_schema(served), config=schemathesis.Config())
    negative = schemathesis.GenerationMode.NEGATIVE
    return Requests(
        {method: api[path][method].as_strategy() for method, path in ENDPOINTS.items()},
        {method: api[path][method].as_strategy(generation_mode=negative) for method, path in ENDPOINTS.items()},
        api[CANCEL]["post"].as_strategy(),
    )


def stricter_schema(served: dict[str, Any]) -> dict[str, Any]:
    """The served schema, changed so that the server accepts every valid request and most of them have texts."""
    schema = copy.deepcopy(served)
    inputs, request = (schema["components"]["schemas"][name] for name in ("Input", "PredictionRequest"))
    del inputs["properties"]["file"]  # test_file_input.py has its own bad files; a URL acts outside of the server
    for field in inputs["properties"].values():
        field.pop("nullable", None)  # Cog's validator ignores this keyword and rejects null
    # The served schema mostly generates requests without any text. Violations of these limits are tested as well.
    inputs |= {"additionalProperties": False, "minProperties": 2}
    for name in ("query", "document"):
        inputs["properties"][name]["minLength"] = 1
        inputs["properties"]["queries" if name == "query" else "documents"]["items"]["minLength"] = 1
    request |= {"additionalProperties": False, "required": ["input"]}
    schema["paths"][ENDPOINTS["post"]]["post"]["requestBody"]["required"] = True  # the server answers 400 without it
    # The server has this endpoint, its schema does not.
    put = copy.deepcopy(schema["paths"][ENDPOINTS["post"]]["post"]) | {"operationId": "put"}
    put["parameters"] = schema["paths"][CANCEL]["post"]["parameters"]
    schema["paths"][ENDPOINTS["put"]] = {"put": put}
    return schema


def send(server: Server, case: schemathesis.Case[Any], **headers: str) -> schemathesis.Response:
    """Send a request, then check the server's health. Removes ids and webhooks, which act outside of the server.

    The server names a folder after the id, even after `/etc` or `../..`, and calls the webhook. It reads a list as the
    request's fields in order: the first is the id, the fourth the webhook.
    """
    name = f"fuzz-{next(_ids)}"
    if "prediction_id" in case.path_parameters and case.path != CANCEL:
        case.path_parameters["prediction_id"] = name
    if isinstance(case.body, dict):
        case.body.pop("webhook", None)
        if isinstance(case.body.get("id"), str):
            case.body["id"] = name
    if isinstance(case.body, list):
        case.body = [None if isinstance(item, str) else item for item in case.body]
    response = ask(server, case, **headers)
    assert get(server, "/health-check")["status"] == "READY"
    assert "Traceback" not in server.log.read_text("utf-8"), "an uncaught error"
    return response


def get(server: Server, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(server.url + path, timeout=SECONDS) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def ask(server: Server, case: schemathesis.Case[Any], **headers: str) -> schemathesis.Response:
    response = case.call(base_url=server.url, headers=headers, timeout=SECONDS)
    case.validate_response(response, checks=CHECKS)
    return response


def assert_answers(response: schemathesis.Response, case: schemathesis.Case[Any], embedder: Embedder) -> None:
    """The output has the vectors and scores of the request's texts; an invalid request failed."""
    answer, inputs = response.json(), inputs_of(case)
    queries, documents = (
        ([inputs[single]] if single in inputs else []) + inputs.get(several, [])
        for single, several in (("query", "queries"), ("document", "documents"))
    )
    if not queries + documents or not all(map(is_text, queries + documents)):
        assert answer["status"] == "failed", answer
        assert REFUSAL.fullmatch(answer["error"]), answer["error"]
        assert "output" not in answer
        return
    assert answer["status"] == "succeeded", answer
    output = answer["output"]
    vectors = embed_one_by_one(embedder, queries, documents, inputs.get("task", DEFAULT_TASK))
    encoding_format = inputs.get("encoding_format", "float")
    if encoding_format == "tokens":
        tokens = embedder.tokenize(queries, documents, inputs.get("task", DEFAULT_TASK))
        assert output["token_ids"] == lists(tokens.ids)
        return
    assert_encoded(output, encoding_format, normalize(vectors) if inputs.get("normalize") else vectors)
    assert (output["scores"] is None) == (not queries or not documents)
    if queries and documents:
        units = normalize(vectors)
        wanted = 100 * units[: len(queries)] @ units[len(queries) :].T
        np.testing.assert_allclose(np.array(output["scores"]), wanted, atol=0.02)
    assert output["score"] == (output["scores"][0][0] if len(queries) == len(documents) == 1 else None)


def assert_encoded(output: dict[str, Any], encoding_format: str, wanted: Vectors) -> None:
    """The vectors are those that are wanted, as exactly as the format has them."""
    assert (output["embeddings"] is None) == (encoding_format != "float")
    if encoding_format in ("float", "base64"):
        assert_equal(cog_client.vectors(output), wanted)
        return
    dtype = {"float16": "<f2", "int8": "i1", "ubinary": "u1"}[encoding_format]
    rows = np.stack([np.frombuffer(base64.b64decode(text), dtype) for text in output["embeddings_base64"]])
    largest = np.abs(wanted).max(axis=1, keepdims=True)
    if encoding_format == "ubinary":
        bits = np.unpackbits(rows, axis=1)
        assert (bits == (wanted > 0))[np.abs(wanted) > 1e-4 * largest].all()
        return
    scales = np.array(output["scales"] or [1.0])[:, None]
    assert (np.abs(rows * scales - wanted) <= largest / {"float16": 1000, "int8": 250}[encoding_format]).all()


def inputs_of(case: schemathesis.Case[Any]) -> dict[str, Any]:
    """The inputs that the server reads from an accepted request."""
    body: Any = json.loads(case.body) if isinstance(case.body, bytes) else case.body
    inputs: dict[str, Any] | None = body.get("input") if isinstance(body, dict) else body[1]
    return inputs or {}


@pytest.mark.parametrize("method", ENDPOINTS)
@settings(ONCE, max_examples=40)
@given(data=st.data())
def test_valid_request_gets_its_vectors(
    server: Server, requests: Requests, embedder: Embedder, method: str, data: st.DataObject
) -> None:
    case = data.draw(requests.valid[method])
    response = send(server, case)
    assert response.status_code == 200, response.text
    assert_answers(response, case, embedder)


@pytest.mark.parametrize("method", ENDPOINTS)
@settings(ONCE, max_examples=40)
@given(data=st.data())
def test_invalid_request_is_rejected_or_answered_without_its_unknown_fields(
    server: Server, requests: Requests, embedder: Embedder, method: str, data: st.DataObject
) -> None:
    case = data.draw(requests.invalid[method])
    response = send(server, case)
    if response.status_code == 200:
        assert_answers(response, case, embedder)
    else:
        assert response.status_code in (400, 415, 422)  # not JSON, another content type, not a prediction request
        assert response.text


@settings(ONCE, max_examples=10)
@given(data=st.data())
def test_asynchronous_request_gets_its_answer_when_repeated(
    server: Server, requests: Requests, embedder: Embedder, data: st.DataObject
) -> None:
    case = data.draw(requests.valid["put"])
    response = send(server, case, Prefer="respond-async")
    assert response.status_code == 202
    assert response.json()["status"] == "starting"
    end = time.monotonic() + SECONDS
    while (response := ask(server, case)).status_code == 202:
        assert time.monotonic() < end, "the prediction does not end"
        time.sleep(0.005)
    assert_answers(response, case, embedder)


@settings(ONCE, max_examples=15)
@given(data=st.data())
def test_cancelling_an_unknown_prediction_gives_404(server: Server, requests: Requests, data: st.DataObject) -> None:
    response = send(server, data.draw(requests.cancel))
    assert response.status_code == 404
    assert response.json() == {}


# The library


@settings(FUZZ, max_examples=60)
@given(
    texts=st.lists(TEXT.filter(is_text), max_size=5) | st.lists(TEXT, max_size=5), task=TEXT, unit_length=st.booleans()
)
@example(texts=["word " * 5000, "a"], task="find", unit_length=False)
def test_texts_get_the_vectors_of_single_calls_or_an_error_with_their_name(
    embedder: Embedder, texts: list[str], task: str, unit_length: bool
) -> None:
    for name, embed in embedders(embedder, task).items():
        bad = next((f"`{name}[{index}]`" for index, text in enumerate(texts) if not is_text(text)), None)
        if bad is None and name == "queries" and not is_unicode(task):
            bad = "`task`"
        if bad is not None:
            with pytest.raises(InputError) as caught:
                embed(texts, normalize=unit_length)
            assert str(caught.value).startswith(bad)
            continue
        each = [embed([text], normalize=unit_length) for text in texts]
        assert_equal(embed(texts, normalize=unit_length), np.concatenate([embed([]), *each]))


def embedders(embedder: Embedder, task: Any) -> dict[str, Callable[..., Vectors]]:
    return {"queries": partial(embedder.embed_queries, task=task), "documents": embedder.embed_documents}


@settings(FUZZ, max_examples=200)
@given(texts=ANYTHING, task=ANYTHING)
@example(texts=b"", task="")
def test_other_types_raise_input_error_only(embedder: Embedder, texts: Any, task: Any) -> None:
    fine = isinstance(texts, list | tuple) and all(map(is_text, texts))
    for name, embed in embedders(embedder, task).items():
        if fine and (name == "documents" or (isinstance(task, str) and is_unicode(task))):
            assert embed(texts).shape == (len(texts), embedder.dimensions)
        else:
            with pytest.raises(InputError, match=f"^`(task|{name})"):
                embed(texts)


@settings(FUZZ, max_examples=60)
@given(TEXT.filter(is_text), TEXT.filter(is_unicode), st.sampled_from([1, 2, 100, 2000, 20_000]), st.booleans())
def test_texts_are_truncated_to_the_model_s_limit_and_counted(
    embedder: Embedder, part: str, task: str, times: int, as_query: bool
) -> None:
    text = part * times
    prompted = f"Instruct: {task}\nQuery: {text}" if as_query and task else text
    tokens = embedder.tokenize(*(([text], []) if as_query else ([], [text])), task)
    limit = embedder.tokenizer.max_tokens
    assert limit == 4096
    assert lists(tokens.ids) == [decoder_ids(prompted, limit)]
    assert tokens.truncated == [0] * (len(decoder_ids(prompted, limit + 1)) > limit)


# The service's own steps

CHARACTERS = 12
LIMITS = Limits(texts=4, characters=CHARACTERS, request_tokens=2)  # so 40 characters in total


@settings(FUZZ, max_examples=300)
@given(
    query=st.none() | TEXT | ANYTHING,
    document=st.none() | TEXT | ANYTHING,
    queries=st.none() | st.lists(TEXT, max_size=3) | ANYTHING,
    documents=st.none() | st.lists(TEXT, max_size=3) | ANYTHING,
    task=TEXT | ANYTHING,
)
@example(query="a", document=None, queries=None, documents=None, task=" " * 13)
def test_texts_of_a_request_are_gathered_in_order_or_rejected(
    query: Any, document: Any, queries: Any, documents: Any, task: Any
) -> None:
    singles = [text for text in (query, document) if text is not None]
    groups = [texts for texts in (queries, documents) if texts is not None]
    texts = singles + [text for group in groups if isinstance(group, list | tuple) for text in group]
    valid = (
        all(isinstance(group, list | tuple) for group in groups)
        and all(is_text(text) and len(text) <= CHARACTERS for text in texts)
        and 1 <= len(texts) <= LIMITS.texts
        and sum(map(len, texts)) <= 20 * LIMITS.request_tokens
        and isinstance(task, str)
        and len(task) <= CHARACTERS
        and is_unicode(task)
    )
    check = partial(
        EmbedRequest.from_inputs,
        LIMITS,
        task=task,
        query=query,
        document=document,
        normalize=False,
        queries=queries,
        documents=documents,
        encoding_format="float",
        long_texts="truncate",
    )
    if not valid:
        with pytest.raises(InputError, match=r"`|E5_MAX_"):
            check()
        return
    request = check()
    assert request.queries == ([] if query is None else [query]) + list(queries or [])
    assert request.documents == ([] if document is None else [document]) + list(documents or [])


def encoded(vectors: Vectors, queries: int, unit_length: bool, encoding_format: EncodingFormat) -> EncodedOutput:
    texts = ["a"] * len(vectors)
    tokens = Tokens([np.zeros(3, np.int32)] * len(vectors), [3] * len(vectors))
    return encode(vectors, tokens, EmbedRequest(texts[:queries], texts[queries:], "", unit_length, encoding_format))


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=FLOATS)


@settings(FUZZ, max_examples=100)
@given(vectors=VECTORS, queries=st.integers(0, 5), unit_length=st.booleans())
def test_output_has_the_same_bits_in_both_formats_and_is_json(
    vectors: Vectors, queries: int, unit_length: bool
) -> None:
    queries = min(queries, len(vectors))
    answers: list[Any] = [encoded(vectors, queries, unit_length, name) for name in ("float", "base64")]
    as_float, as_base64 = answers
    wanted = normalize(vectors) if unit_length else vectors
    assert as_base64.embeddings is None and as_float.embeddings_base64 is None
    sent = json.loads(json.dumps(as_float.embeddings.tolist(), allow_nan=False))
    assert np.array(sent, dtype=np.float32).tobytes() == wanted.tobytes()
    assert b"".join(map(base64.b64decode, as_base64.embeddings_base64)) == wanted.tobytes()
    for answer in answers:
        if not 0 < queries < len(vectors):
            assert answer.scores is None and answer.score is None
            continue
        scores = np.array(json.loads(json.dumps(answer.scores.tolist(), allow_nan=False)))
        assert scores.shape == (queries, len(vectors) - queries)
        assert np.abs(scores).max() <= 100
        assert answer.score == (scores[0, 0] if scores.size == 1 else None)


@settings(FUZZ, max_examples=50)
@given(
    vectors=VECTORS,
    place=st.integers(0),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    unit_length=st.booleans(),
    encoding_format=st.sampled_from(["float", "base64", "float16", "int8", "ubinary"]),
)
def test_nan_and_infinity_are_never_returned(
    vectors: Vectors, place: int, value: float, unit_length: bool, encoding_format: EncodingFormat
) -> None:
    place %= vectors.size
    vectors.flat[place] = value
    with pytest.raises(FloatingPointError, match=f"text {place // vectors.shape[1] + 1} of {len(vectors)}:"):
        encoded(vectors, len(vectors) // 2, unit_length, encoding_format)


@settings(FUZZ, max_examples=100)
@given(vectors=VECTORS)
def test_smaller_formats_are_rounded_or_refused(vectors: Vectors) -> None:
    def rows(encoding_format: EncodingFormat, dtype: str) -> np.ndarray[Any, Any]:
        answer = encoded(vectors, 0, False, encoding_format)
        return np.stack([np.frombuffer(base64.b64decode(text), dtype) for text in answer.embeddings_base64 or []])

    scales: Any = encoded(vectors, 0, False, "int8").scales
    numbers, steps = rows("int8", "i1"), np.array(scales.tolist(), np.float64)[:, None]
    assert (np.abs(numbers * steps - vectors) <= 0.51 * steps).all()
    assert np.array_equal(np.unpackbits(rows("ubinary", "u1"), axis=1)[:, : vectors.shape[1]], vectors > 0)
    if np.abs(vectors).max() < 65520:  # below the middle between float16's last number and the next
        assert np.array_equal(rows("float16", "<f2"), vectors.astype(np.float16))
    else:
        with pytest.raises(InputError, match="`encoding_format` float16 ends at ±65,504: pass normalize=true"):
            rows("float16", "<f2")


# The queue

POOL = ["a", "b", "a b", "漢字", "</s>", "how tall is the tower?", "The tower is 300 m high.", "word " * 40, "x" * 99]


@dataclass(frozen=True)
class Call:
    """A request to the queue. It starts after `start` milliseconds, and is cancelled `cancel` milliseconds later."""

    queries: list[str]
    documents: list[str]
    start: int
    cancel: int | None


SOME = st.lists(st.sampled_from(POOL), max_size=4)
CALL = st.builds(Call, SOME, SOME, st.integers(0, 20), st.none() | st.integers(0, 20))


@pytest.fixture(scope="module")
def pool(embedder: Embedder) -> dict[str, tuple[Vectors, Vectors]]:
    """The vectors of each text of POOL, embedded one at a time: as a query and as a document."""
    return {text: (embed_one_by_one(embedder, [text], []), embed_one_by_one(embedder, [], [text])) for text in POOL}


@settings(ONCE, max_examples=50)
@given(
    calls=st.lists(CALL.filter(lambda call: bool(call.queries or call.documents)), min_size=1, max_size=12),
    budget=st.sampled_from([1, 50, 300, 4096]),
)
def test_shared_batches_and_cancellations_do_not_change_vectors(
    embedder: Embedder, pool: dict[str, tuple[Vectors, Vectors]], calls: list[Call], budget: int
) -> None:
    def assert_vectors(got: Embedded, queries: list[str], documents: list[str]) -> None:
        wanted = [pool[text][0] for text in queries] + [pool[text][1] for text in documents]
        assert_equal(got.vectors, np.concatenate(wanted))

    async def embed(batcher: Batcher, call: Call) -> Embedded:
        await asyncio.sleep(call.start / 1000)
        return await batcher.embed(embedder.tokenize(call.queries, call.documents, DEFAULT_TASK))

    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            async with asyncio.timeout(SECONDS):
                batcher = Batcher(embedder, thread, 1_000_000)
                tasks = [asyncio.create_task(embed(batcher, call)) for call in calls]
                for call, task in zip(calls, tasks, strict=True):
                    if call.cancel is not None:
                        asyncio.get_running_loop().call_later((call.start + call.cancel) / 1000, task.cancel)
                for call, got in zip(calls, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                    if isinstance(got, asyncio.CancelledError) and call.cancel is not None:
                        continue
                    assert isinstance(got, Embedded), got
                    assert_vectors(got, call.queries, call.documents)
                assert_vectors(await embed(batcher, Call(["a"], POOL, 0, None)), ["a"], POOL)
                assert not batcher.dead and not batcher.suspect

    before, embedder.max_batch_tokens = embedder.max_batch_tokens, budget
    try:
        asyncio.run(main())
    finally:
        embedder.max_batch_tokens = before
