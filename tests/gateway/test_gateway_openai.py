"""OpenAI's embeddings API: accepted requests, error messages, and the bytes of the answer."""

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from e5 import catalog, tasks
from e5.limits import Limits
from e5_gateway.embedding import parse_model, rename_texts
from e5_gateway.errors import GatewayError, prediction_error
from e5_gateway.openai_api import error_body, parse, render
from e5_gateway.target import Identity

NAME = "e5-mistral-tiny"
IDENTITY = Identity(NAME, np.zeros(4, np.float32), {}, "0.23.1", catalog.get(NAME), "0" * 64, 0.0, "", "float32", 4096)
MAX_NUMBERS = Limits.answer_numbers


def prediction_inputs(**fields: Any) -> dict[str, Any]:
    """The inputs of a request's prediction."""
    request = parse({"model": NAME, "input": "text"} | fields, IDENTITY, MAX_NUMBERS)
    inputs: dict[str, Any] = json.loads(request.prediction())["input"]
    return inputs


def refusal(**fields: Any) -> GatewayError:
    with pytest.raises(GatewayError) as refused:
        parse({"model": NAME, "input": "text"} | fields, IDENTITY, MAX_NUMBERS)
    return refused.value


def test_default_is_a_normalized_document() -> None:
    plain = {"documents": ["text"], "normalize": True, "encoding_format": "base64"}
    assert prediction_inputs() == plain
    assert prediction_inputs(input=["a", "b"]) == plain | {"documents": ["a", "b"]}
    assert (
        prediction_inputs(
            model=f"{NAME}:document", input_type="document", user="me", dimensions=4, encoding_format=None
        )
        == plain
    )
    assert prediction_inputs(normalize=False) == plain | {"normalize": False}


def test_query_and_task_come_from_fields_or_the_model_suffix() -> None:
    query = {"queries": ["text"], "normalize": True, "encoding_format": "base64"}
    assert prediction_inputs(input_type="query") == prediction_inputs(model=f"{NAME}:query") == query
    assert (
        prediction_inputs(task="find it")
        == prediction_inputs(task="find it", model=f"{NAME}:query")
        == query | {"task": "find it"}
    )
    assert prediction_inputs(task="", input_type="query") == query | {"task": ""}
    assert prediction_inputs(model=f"{NAME}:query:NQ") == query | {"task": tasks.instruction("NQ")}
    assert prediction_inputs(model=f"{NAME}:query:NQ", task=tasks.instruction("NQ")) == query | {
        "task": tasks.instruction("NQ")
    }


def test_names_of_other_apis_mean_query_and_document() -> None:
    for name in ("query", "search_query"):
        assert prediction_inputs(input_type=name)["queries"] == ["text"]
    for name in ("document", "passage", "search_document"):
        assert prediction_inputs(input_type=name) == prediction_inputs()
    assert prediction_inputs(model=f"{NAME}-query") == prediction_inputs(input_type="query")
    assert prediction_inputs(model=f"{NAME}-query", input_type="search_query", task="find")["task"] == "find"
    for suffix in ("-passage", "-document", ":passage", ":search_document"):
        assert prediction_inputs(model=NAME + suffix) == prediction_inputs()
    assert prediction_inputs(model=f"{NAME}:search_query:NQ") == prediction_inputs(model=f"{NAME}:query:NQ")
    own = replace(IDENTITY, model="my-query")
    assert parse_model("my-query", own) == {} and parse_model("my-query-query", own) == {"input_type": "query"}


def test_long_texts_and_small_formats_are_the_server_s() -> None:
    assert prediction_inputs(long_texts="average")["long_texts"] == "average"
    for name in ("base64", "float16", "int8", "ubinary"):
        assert prediction_inputs(encoding_format=name)["encoding_format"] == name


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "`input` is missing"),
        ({"model": None}, "model", "`model` is missing"),
        ({"input": []}, "input", "empty list"),
        ({"input": 5}, "input", "must be a string or a list of strings"),
        ({"input": {"a": 1}}, "input", "must be a string or a list of strings"),
        ({"input": ["a", None]}, "input", r"`input[1]` is not a string"),
        ({"input": ["a", True]}, "input", r"`input[1]` is not a string"),
        ({"input": [1, 2, 3]}, "input", "token ids"),
        ({"input": [[1, 2], [3]]}, "input", "token ids"),
        ({"input": ["a", [1]]}, "input", "token ids"),
        ({"dimensions": 3}, "dimensions", "have 4 and cannot be cut: leave it out"),
        ({"dimensions": 4.0}, "dimensions", "have 4"),
        ({"dimensions": True}, "dimensions", "have 4"),
        ({"encoding_format": "int4"}, "encoding_format", "choose one of float, base64, float16, int8, ubinary"),
        ({"encoding_format": "tokens"}, "encoding_format", "choose one of float, base64, float16, int8, ubinary"),
        ({"encoding_format": ["float"]}, "encoding_format", "choose one of float, base64"),
        ({"input_type": "clustering"}, "input_type", "choose one of query, document, passage, search_query"),
        ({"input_type": 1}, "input_type", "choose one of query, document"),
        ({"long_texts": "cut"}, "long_texts", "choose one of truncate, error, average"),
        ({"long_texts": True}, "long_texts", "choose one of truncate, error, average"),
        ({"model": f"{NAME}-query", "input_type": "passage"}, "input_type", "contradicts the suffix"),
        ({"task": ["a"]}, "task", "must be a string"),
        ({"normalize": "no"}, "normalize", "must be a boolean"),
        ({"input_type": "document", "task": "find"}, "task", "goes with queries only"),
        ({"model": f"{NAME}:document", "task": "find"}, "task", "goes with queries only"),
        ({"model": f"{NAME}:query", "input_type": "document"}, "input_type", "contradicts the suffix"),
        ({"model": f"{NAME}:query:NQ", "task": "find"}, "task", "contradicts the suffix"),
        ({"prompt": None}, "prompt", "`prompt` is not a field of this API: the fields are input, model"),
        ({"prompt": "x"}, "prompt", "`prompt` is not a field of this API: the fields are input, model"),
        ({"input": ["text"] * 500_001}, "encoding_format", "2,000,004 numbers, more than 2,000,000"),
    ],
)
def test_invalid_request_names_field_and_cure(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(**fields)
    body = error_body(error)["error"]
    assert (error.status, body["type"], body["param"]) == (400, "invalid_request_error", param)
    assert words in body["message"]


def test_limit_of_numbers_follows_the_setting() -> None:
    body = {"model": NAME, "input": ["text"] * 3}
    assert parse(body, IDENTITY, 12).texts == ["text"] * 3
    with pytest.raises(GatewayError, match="the answer would have 12 numbers, more than 11: send fewer texts"):
        parse(body, IDENTITY, 11)


def test_base64_has_no_limit_of_numbers() -> None:
    assert len(prediction_inputs(input=["text"] * 500_001, encoding_format="base64")["documents"]) == 500_001


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4",
        f"{NAME}:text",
        f"{NAME}-text",
        f"{NAME}-query:NQ",
        f"{NAME}:document:NQ",
        f"{NAME}:query:None",
        "",
        5,
        ":query",
    ],
)
def test_unknown_model_error_lists_the_known_names(name: object) -> None:
    with pytest.raises(GatewayError) as refused:
        parse_model(name, IDENTITY)
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
    assert NAME in refused.value.message


def test_numbers_have_the_shortest_digits_of_their_float32() -> None:
    vectors = np.array([[0.1, 1 / 3, -1e-8, 3e10], [1.0, 2.5, 0.0, 16777216.0]], dtype="<f4")
    prediction: dict[str, Any] = {
        "output": {"embeddings_base64": [base64.b64encode(row.tobytes()).decode() for row in vectors]},
        "metrics": {"input_tokens": 7},
    }
    texts = render(parse({"model": NAME, "input": ["a", "b"]}, IDENTITY, MAX_NUMBERS).response, prediction).decode()
    assert '"embedding":[0.1,0.33333334,-1e-8,30000000000.0]' in texts
    answer = json.loads(texts)
    assert np.array_equal(np.array([item["embedding"] for item in answer["data"]], dtype="<f4"), vectors)
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert (answer["object"], answer["data"][0]["object"], answer["model"]) == ("list", "embedding", NAME)
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert "truncated" not in answer
    prediction["output"] |= {"truncated": [1], "scales": [0.5, 0.25]}
    int8_request = parse({"model": NAME, "input": ["a", "b"], "encoding_format": "int8"}, IDENTITY, MAX_NUMBERS)
    int8_answer = json.loads(render(int8_request.response, prediction))
    assert [item["scale"] for item in int8_answer["data"]] == [0.5, 0.25] and int8_answer["truncated"] == [1]
    base64_request = parse({"model": NAME, "input": "a", "encoding_format": "base64"}, IDENTITY, MAX_NUMBERS)
    base64_answer = json.loads(render(base64_request.response, prediction))
    assert [item["embedding"] for item in base64_answer["data"]] == prediction["output"]["embeddings_base64"]


@pytest.mark.parametrize(
    ("single", "error", "status", "message", "param"),
    [
        (
            False,
            "InputError: `documents[3]` is empty: pass the text",
            400,
            "`input[3]` is empty: pass the text",
            "input",
        ),
        (True, "InputError: `queries[0]` is empty: pass the text", 400, "`input` is empty: pass the text", "input"),
        (True, "InputError: `task` is too long", 400, "`task` is too long", "task"),
        (True, "InputError: the request has 3 texts", 400, "the request has 3 texts", "input"),
        (True, "OverloadError: 5 tokens wait", 429, "5 tokens wait", None),
        (True, "ModelError: text 1 of 1: NaN", 500, "text 1 of 1: NaN", None),
    ],
)
def test_prediction_errors_name_this_apis_fields(
    single: bool, error: str, status: int, message: str, param: str | None
) -> None:
    failed = {"error": f"Prediction failed: Async prediction failed: {error}"}
    refused = rename_texts(prediction_error(failed), "input", single=single)
    assert (refused.status, refused.message, refused.param) == (status, message, param)
    assert (refused.retry_after is not None) == (status == 429)
