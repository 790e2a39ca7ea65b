"""text-embeddings-inference's API: accepted requests, prompts, order, errors; then through the real Cog server."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import e5
from e5 import DEFAULT_TASK, catalog, tasks
from e5.limits import Limits
from e5.serving import tokenizing
from e5_cog.server import Server
from e5_gateway import tei_api
from e5_gateway.embedding import TRUNCATED_HEADER
from e5_gateway.errors import GatewayError, QueueFull, Unavailable, prediction_error
from e5_gateway.target import Identity
from e5_gateway.tei_api import Answer, cosines, describe, error_body, list_tokens, parse_embed, parse_root, split_prompt
from tests.gateways import BEARER, Gateway, gateway
from tests.rule_predictor import MODEL, score, vector

MAX_NUMBERS = Limits.answer_numbers
STS = "Retrieve semantically similar text."


def identity(name: str, dimensions: int = 4) -> Identity:
    entry = catalog.get(name) if name in catalog.names() else None
    return Identity(name, np.zeros(dimensions, np.float32), {}, "0.23.1", entry, "0" * 64, 0.0, "", "float32", 512)


INSTRUCT, PREFIX, OWN = identity("e5-mistral-tiny"), identity("e5-small"), identity("my-e5")


def parsed(body: dict[str, Any], model: Identity = INSTRUCT) -> tuple[Answer, dict[str, Any]]:
    """The answer and the inputs of the prediction. `body` goes to POST /."""
    answer, content = parse_root(body, model, MAX_NUMBERS)
    return answer, json.loads(content)["input"]


def inputs_of(model: Identity = INSTRUCT, **fields: Any) -> dict[str, Any]:
    return parsed({"inputs": "text"} | fields, model)[1]


def texts_of(model: Identity, **fields: Any) -> dict[str, Any]:
    given = inputs_of(model, **fields)
    return {name: given[name] for name in ("queries", "documents", "task") if name in given}


# Requests


def test_default_is_a_normalized_document_with_the_servers_default_for_long_texts() -> None:
    plain = {"documents": ["text"], "normalize": True, "encoding_format": "base64"}
    assert inputs_of() == inputs_of(inputs=["text"]) == plain
    assert inputs_of(normalize=None, truncate=None, truncation_direction="Right", dimensions=4) == plain
    assert inputs_of(truncation_direction="right", encoding_format="float", prompt_name=None) == plain
    assert inputs_of(normalize=False) == plain | {"normalize": False}
    assert inputs_of(truncate=False) == plain | {"long_texts": "error"}
    assert inputs_of(truncate=True) == plain | {"long_texts": "truncate"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("query", {"queries": ["text"]}),
        ("document", {"documents": ["text"]}),
        ("passage", {"documents": ["text"]}),
        ("NQ", {"queries": ["text"], "task": tasks.instruction("NQ")}),
        ("web_search_query", {"queries": ["text"], "task": DEFAULT_TASK}),
        ("sts_query", {"queries": ["text"], "task": STS}),
        ("summarization_query", {"queries": ["text"], "task": tasks.instruction("Summarization")}),
    ],
)
def test_prompt_name_chooses_side_and_task(name: str, expected: dict[str, Any]) -> None:
    assert texts_of(INSTRUCT, prompt_name=name) == texts_of(OWN, prompt_name=name) == expected


def test_prompt_name_adds_its_prompt_to_prefixed_texts_too() -> None:
    assert texts_of(PREFIX, inputs="query: a", prompt_name="query") == {"queries": ["query: a"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("query: a", (True, "a")),
        ("passage: a", (False, "a")),
        ("query:  a", (True, " a")),
        ("query: passage: a", (True, "passage: a")),
        ("a", (False, "a")),
        ("query:a", (False, "query:a")),
        ("Query: a", (False, "Query: a")),
        (" query: a", (False, " query: a")),
        ("Instruct: t\nQuery: a", (False, "Instruct: t\nQuery: a")),
    ],
)
def test_prefix_of_a_prefix_model_is_taken_off(text: str, expected: tuple[bool, str]) -> None:
    assert split_prompt(text, "prefix", False) == expected
    assert split_prompt(text, "instruct", False) == split_prompt(text, None, False) == (False, text)
    own_instruction = text.startswith("Instruct: ")
    assert split_prompt(text, "instruct", True) == (not own_instruction, text)
    assert split_prompt(text, None, True) == (True, text)


MIXED = ["passage: d0", "query: q1", "d2", "query: q3", "passage: d4"]


def test_mixed_list_comes_back_in_its_order() -> None:
    answer, given = parsed({"inputs": MIXED}, PREFIX)
    assert (given["queries"], given["documents"]) == (["q1", "q3"], ["d0", "d2", "d4"])
    served = given["queries"] + given["documents"]
    rows = [np.array([float(text[1]), 0, 0, 1], "<f4") for text in served]
    prediction = {"output": {"embeddings_base64": [base64.b64encode(row.tobytes()).decode() for row in rows]}}
    assert [row[0] for row in json.loads(answer.render(prediction))] == [0, 1, 2, 3, 4]
    for place, text in enumerate(served):
        side, index = ("queries", place) if place < 2 else ("documents", place - 2)
        error = answer.translate(GatewayError(400, f"`{side}[{index}]` is empty"))
        assert error.message == f"`inputs[{text[1]}]` is empty"


def test_similarity_takes_queries_of_the_sts_task() -> None:
    body: dict[str, Any] = {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}
    plain = {"queries": ["a", "b", "c"], "task": STS, "normalize": True, "encoding_format": "base64"}
    assert parsed(body)[1] == parsed(body | {"parameters": {}})[1] == parsed(body, PREFIX)[1] == plain
    given = parsed(body | {"parameters": {"prompt_name": "document", "truncate": False}})[1]
    assert (given["documents"], given["long_texts"]) == (["a", "b", "c"], "error")
    assert "queries" not in given and "task" not in given
    own = {"source_sentence": "a", "sentences": ["query: b", "passage: c", "Instruct: t\nQuery: d"]}
    assert texts_of(PREFIX, inputs=own) == {
        "queries": ["a", "b", "Instruct: t\nQuery: d"],
        "documents": ["c"],
        "task": STS,
    }
    assert texts_of(INSTRUCT, inputs=own) == {
        "queries": ["a", "query: b", "passage: c"],
        "documents": ["Instruct: t\nQuery: d"],
        "task": STS,
    }


def test_cosines_are_of_the_first_vector_with_the_others() -> None:
    vectors = [np.array(row, "<f4") for row in ([0.6, 0.8], [0.8, 0.6], [0.6, 0.8], [-0.6, -0.8])]
    np.testing.assert_allclose(cosines(vectors), [0.96, 1, -1], atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"inputs": None}, 422, "`inputs` must be a string or a list of strings"),
        ({"inputs": 5}, 422, "`inputs` must be a string or a list of strings"),
        ({"inputs": []}, 400, "`inputs` cannot be empty"),
        ({"inputs": [1, 2]}, 422, "token ids are not taken"),
        ({"inputs": ["a", [1, 2]]}, 422, "`inputs[1]` is not a string: token ids"),
        ({"inputs": ["a", None]}, 422, "`inputs[1]` is not a string"),
        ({"inputs": ["a", True]}, 422, "`inputs[1]` is not a string"),
        ({"normalize": "no"}, 422, "`normalize` must be a boolean"),
        ({"normalize": 1}, 422, "`normalize` must be a boolean"),
        ({"truncate": 0}, 422, "`truncate` must be a boolean"),
        ({"truncation_direction": "Left"}, 422, "`truncation_direction` is 'Left': it must be right"),
        ({"truncation_direction": "left"}, 422, "it must be right"),
        ({"truncation_direction": ["right"]}, 422, "it must be right"),
        ({"prompt_name": 5}, 422, "`prompt_name` must be a string"),
        ({"prompt_name": "search"}, 422, "`prompt_name` is 'search': choose query, document, web_search_query"),
        ({"prompt_name": ""}, 422, "`prompt_name` is ''"),
        ({"dimensions": 3}, 422, "`dimensions` is 3; the vectors of e5-mistral-tiny have 4"),
        ({"dimensions": 4.0}, 422, "have 4 and cannot be cut"),
        ({"encoding_format": "base64"}, 422, "`encoding_format` must be float"),
        ({"normalise": True}, 422, "`normalise` is not a field of this request: the fields are inputs, truncate"),
        ({"parameters": {}}, 422, "`parameters` is not a field of this request"),
        ({"inputs": ["text"] * 500_001}, 422, "2,000,004 numbers, more than 2,000,000: send fewer texts"),
        ({"inputs": {}}, 422, "`inputs.source_sentence` must be a string"),
        ({"inputs": {"source_sentence": "a"}}, 422, "`inputs.sentences` must be a list of strings"),
        ({"inputs": {"source_sentence": "a", "sentences": "b"}}, 422, "`inputs.sentences` must be a list"),
        ({"inputs": {"source_sentence": "a", "sentences": []}}, 400, "`inputs.sentences` cannot be empty"),
        ({"inputs": {"source_sentence": "a", "sentences": ["b", 1]}}, 422, "`inputs.sentences[1]` is not a string"),
        ({"inputs": {"source_sentence": "a", "sentences": ["b"]}, "truncate": True}, 422, "`truncate` is not a field"),
        ({"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": []}, 422, "must be an object"),
        ({"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"top": 1}}, 422, "`top` is not a"),
    ],
)
def test_invalid_request_names_field_and_cure(fields: dict[str, Any], status: int, words: str) -> None:
    with pytest.raises(GatewayError) as refused:
        parsed({"inputs": "text"} | fields)
    assert refused.value.status == status
    body = error_body(refused.value)
    assert words in body["error"]
    assert body["error_type"] == ("Empty" if status == 400 else "Validation")


def test_limit_of_numbers_follows_the_setting_and_spares_similarity() -> None:
    assert parse_embed({"inputs": ["text"] * 3}, INSTRUCT, 12)
    with pytest.raises(GatewayError, match="12 numbers, more than 11"):
        parse_embed({"inputs": ["text"] * 3}, INSTRUCT, 11)
    parse_root({"inputs": {"source_sentence": "a", "sentences": ["b"] * 9}}, INSTRUCT, 11)


# Errors and answers


@pytest.mark.parametrize(
    ("reason", "status", "kind", "message"),
    [
        ("InputError: `queries[0]` is empty: pass the text", 422, "Validation", "`inputs[1]` is empty: pass the text"),
        (
            "InputError: `documents[1]` has 9 tokens: shorten it, or pass long_texts=truncate or average",
            422,
            "Validation",
            "`inputs[2]` has 9 tokens: shorten it, or set `truncate` to true",
        ),
        ("InputError: `documents[7]` is odd", 422, "Validation", "`documents[7]` is odd"),
        ("InputError: the request has 3 texts", 422, "Validation", "the request has 3 texts"),
        ("OverloadError: 5 tokens wait", 429, "Overloaded", "5 tokens wait"),
        ("ModelError: text 1 of 1: NaN", 424, "Backend", "text 1 of 1: NaN"),
    ],
)
def test_prediction_errors_have_teis_status_and_names(reason: str, status: int, kind: str, message: str) -> None:
    failed = {"error": f"Prediction failed: Async prediction failed: {reason}"}
    error = parsed({"inputs": MIXED}, PREFIX)[0].translate(prediction_error(failed))
    assert (error.status, error_body(error)) == (status, {"error": message, "error_type": kind})


def test_names_in_errors_of_a_single_text_and_of_sentences() -> None:
    def message(body: dict[str, Any], name: str) -> str:
        return parsed(body)[0].translate(GatewayError(400, f"`{name}` is empty")).message

    assert message({"inputs": "text"}, "documents[0]") == "`inputs` is empty"
    sentences = {"inputs": {"source_sentence": "a", "sentences": ["b"]}}
    assert message(sentences, "queries[0]") == "`inputs.source_sentence` is empty"
    assert message(sentences, "queries[1]") == "`inputs.sentences[0]` is empty"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (QueueFull("1,000 requests", 2), "Overloaded"),
        (Unavailable("DOWN", "nothing answers"), "Unhealthy"),
        (GatewayError(504, "no answer"), "Backend"),
        (GatewayError(401, "no key"), "Validation"),
        (GatewayError(413, "too large", "request_too_large"), "Validation"),
    ],
)
def test_error_types_follow_the_status(error: GatewayError, kind: str) -> None:
    assert parsed({"inputs": "a"})[0].translate(error).status == error.status
    assert error_body(error) == {"error": error.message, "error_type": kind}


def test_tokens_are_special_at_the_ends_only() -> None:
    ids, pieces = [1, 22, 2, 2], ["<s>", "▁a", "</s>", "</s>"]
    tokens = list_tokens(ids, pieces, True)
    assert tokens[0] == {"id": 1, "text": "<s>", "special": True, "start": None, "stop": None}
    assert [(token["id"], token["special"]) for token in tokens] == [(1, True), (22, False), (2, False), (2, True)]
    assert list_tokens(ids, pieces, False) == tokens[1:3]
    assert [token["special"] for token in list_tokens([5, 6, 7], ["[CLS]", "a", "[SEP]"], True)] == [True, False, True]
    assert not any(token["special"] for token in list_tokens([5, 6], ["a", "b"], True))


def test_tokens_of_an_answer_are_limited() -> None:
    answer, _ = tei_api.parse_tokenize({"inputs": "a"}, INSTRUCT, 14)
    assert answer.write([([1, 2], ["a", "b"])])
    with pytest.raises(GatewayError, match="15 values, more than 14") as refused:
        answer.write([([1, 2, 3], ["a", "b", "c"])])
    assert refused.value.status == 422


def test_info_has_the_catalogs_facts() -> None:
    info = describe(PREFIX, 1064)
    assert (info["model_id"], info["served_model_name"]) == ("intfloat/e5-small", "e5-small")
    assert info["model_sha"] == "e272f3049e853b47cb5ca3952268c6662abda68f"
    assert (info["model_dtype"], info["model_type"]) == ("float32", {"embedding": {"pooling": "mean"}})
    assert (info["max_concurrent_requests"], info["max_input_length"]) == (1064, 512)
    assert (info["max_client_batch_size"], info["max_batch_tokens"]) == (2048, 1_000_000)
    assert (info["auto_truncate"], info["version"]) == (True, e5.__version__)
    assert info["tokenization_workers"] == tokenizing.THREADS
    flagship = describe(identity(catalog.FLAGSHIP), 1)
    assert flagship["model_id"] == "intfloat/e5-mistral-7b-instruct"
    assert flagship["model_type"]["embedding"]["pooling"] == "last_token"
    own = describe(replace(OWN, max_tokens=8), 1)
    assert (own["model_id"], own["model_type"]) == ("my-e5", {"embedding": {"pooling": "unknown"}})
    assert "model_sha" not in own and own.keys() | {"model_sha"} == info.keys()


# Through the real Cog server


@pytest.fixture(scope="module")
def client(keyed: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed.url, headers=BEARER, timeout=60) as connected:
        yield connected


def test_embed_returns_vectors_and_says_what_was_cut(client: httpx.Client) -> None:
    for path in ("/embed", "/"):
        answer = client.post(path, json={"inputs": ["one two", "three"], "normalize": False})
        assert answer.json() == [vector("one two"), vector("three")]
        assert TRUNCATED_HEADER not in answer.headers
        assert client.post(path, json={"inputs": "one"}).json() == [vector("one")]
    long = "a b c d e f g h i"
    cut = client.post("/embed", json={"inputs": ["one", long], "truncate": True})
    assert (cut.status_code, cut.headers[TRUNCATED_HEADER]) == (200, "1")
    refused = client.post("/embed", json={"inputs": ["one", long], "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert "9 tokens, more than 8" in refused.json()["error"]


def test_similarity_returns_cosines(keyed: Gateway, server: Server, tmp_path: Path) -> None:
    """The rule predictor does not normalize, so that its vectors' products show."""
    body = {"inputs": {"source_sentence": "one two", "sentences": ["three", "four five six"]}}
    a, *others = (np.array(vector(text), "f4") for text in ("one two", "three", "four five six"))
    for path in ("/similarity", "/"):
        answer = httpx.post(keyed.url + path, json=body, headers=BEARER).json()
        assert answer == [float(a @ other) for other in others]
    unit = [row / np.linalg.norm(row) for row in (a, *others)]
    np.testing.assert_allclose(cosines(unit) * 100, [score("one two", "three"), score("one two", "four five six")])


def test_prefixed_texts_keep_their_order(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path, "--model", "e5-small") as front:
        answer = httpx.post(f"{front.url}/embed", json={"inputs": ["passage: a b", "query: ccc", "dd", "query: e"]})
        failed = httpx.post(f"{front.url}/embed", json={"inputs": ["query: a", "fail"]})
    assert answer.json() == [vector("a b"), vector("ccc"), vector("dd"), vector("e")]
    assert failed.json() == {"error": "`inputs[1]` is refused: pass another", "error_type": "Validation"}


def test_tokenize_returns_the_servers_tokens(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"inputs": ["one three", "<s>"]}).json()
    assert [[token["text"] for token in tokens] for tokens in answer] == [["one", "three"], ["<s>"]]
    assert answer[0][1] == {"id": 5, "text": "three", "special": False, "start": None, "stop": None}
    bare = client.post("/tokenize", json={"inputs": ["one three", "<s>"], "add_special_tokens": False}).json()
    assert bare == [answer[0], []]


def test_info_is_the_servers(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert (info["model_id"], info["max_input_length"], info["max_concurrent_requests"]) == (MODEL, 8, 64 + 1000)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "words"),
    [
        ("/embed", {"inputs": ["a", "fail"]}, 422, "Validation", "`inputs[0]` is refused"),
        ("/embed", {"inputs": "break"}, 424, "Backend", "broken"),
        ("/embed", {"inputs": []}, 400, "Empty", "cannot be empty"),
        ("/tokenize", {"inputs": []}, 400, "Empty", "cannot be empty"),
        ("/tokenize", {"inputs": "a", "truncate": True}, 422, "Validation", "not a field"),
        ("/similarity", {"inputs": ["a"]}, 422, "Validation", "`inputs` must be an object"),
        ("/", {}, 422, "Validation", "`inputs` must be a string"),
        ("/", [], 400, "Validation", "not a JSON object"),
    ],
)
def test_errors_over_http(client: httpx.Client, path: str, body: Any, status: int, kind: str, words: str) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert words in answer.json()["error"]


def test_other_errors_of_the_paths_have_teis_format(client: httpx.Client, keyed: Gateway) -> None:
    for path in ("/embed", "/similarity", "/tokenize", "/"):
        refused = httpx.post(keyed.url + path, json={"inputs": "a"})
        assert (refused.status_code, set(refused.json())) == (401, {"error", "error_type"})
        assert client.put(path).status_code == 405
    assert client.get("/").headers["content-type"].startswith("text/html")


def test_metrics_count_its_texts(client: httpx.Client) -> None:
    client.post("/embed", json={"inputs": ["one two"]})
    assert 'e5_gateway_texts_total{api="tei"}' in client.get("/metrics").text
