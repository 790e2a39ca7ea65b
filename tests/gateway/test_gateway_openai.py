"""OpenAI's embeddings API: what is taken, what is refused and in which words, and the bytes of the answer."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from e5 import catalog, tasks
from e5_gateway.errors import GatewayError, failed, openai_body
from e5_gateway.openai_api import as_input, check_model, parse, render
from e5_gateway.target import Identity

NAME = "e5-mistral-tiny"
IDENTITY = Identity(NAME, 4, {}, "0.23.1", catalog.get(NAME), "0" * 64, 0.0, "")


def wanted(**fields: Any) -> dict[str, Any]:
    """The inputs of the prediction that a request becomes."""
    embeddings = parse({"model": NAME, "input": "text"} | fields, IDENTITY)
    inputs: dict[str, Any] = json.loads(embeddings.prediction())["input"]
    return inputs


def refusal(**fields: Any) -> GatewayError:
    with pytest.raises(GatewayError) as refused:
        parse({"model": NAME, "input": "text"} | fields, IDENTITY)
    return refused.value


def test_a_text_is_a_document_of_length_one_unless_the_request_says_otherwise() -> None:
    plain = {"documents": ["text"], "normalize": True, "encoding_format": "base64"}
    assert wanted() == plain
    assert wanted(input=["a", "b"]) == plain | {"documents": ["a", "b"]}
    assert (
        wanted(model=f"{NAME}:document", input_type="document", user="me", dimensions=4, encoding_format=None) == plain
    )
    assert wanted(normalize=False) == plain | {"normalize": False}


def test_queries_come_as_a_field_or_as_a_suffix_with_the_task_of_either() -> None:
    query = {"queries": ["text"], "normalize": True, "encoding_format": "base64"}
    assert wanted(input_type="query") == wanted(model=f"{NAME}:query") == query
    assert wanted(task="find it") == wanted(task="find it", model=f"{NAME}:query") == query | {"task": "find it"}
    assert wanted(task="", input_type="query") == query | {"task": ""}
    assert wanted(model=f"{NAME}:query:NQ") == query | {"task": tasks.instruction("NQ")}
    assert wanted(model=f"{NAME}:query:NQ", task=tasks.instruction("NQ")) == query | {"task": tasks.instruction("NQ")}


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
        ({"encoding_format": "int8"}, "encoding_format", "choose one of float, base64"),
        ({"encoding_format": ["float"]}, "encoding_format", "choose one of float, base64"),
        ({"input_type": "passage"}, "input_type", "choose one of query, document"),
        ({"input_type": 1}, "input_type", "must be a string"),
        ({"task": ["a"]}, "task", "must be a string"),
        ({"normalize": "no"}, "normalize", "must be a boolean"),
        ({"input_type": "document", "task": "find"}, "task", "goes with queries alone"),
        ({"model": f"{NAME}:document", "task": "find"}, "task", "goes with queries alone"),
        ({"model": f"{NAME}:query", "input_type": "document"}, "input_type", "contradicts the suffix"),
        ({"model": f"{NAME}:query:NQ", "task": "find"}, "task", "contradicts the suffix"),
        ({"prompt": "x"}, "prompt", "`prompt` is not a field of this API: the fields are input, model"),
        ({"input": ["text"] * 500_001}, "encoding_format", "2,000,004 numbers, more than 2,000,000"),
    ],
)
def test_what_is_wrong_is_refused_with_the_field_and_the_cure(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(**fields)
    body = openai_body(error)["error"]
    assert (error.status, body["type"], body["param"]) == (400, "invalid_request_error", param)
    assert words in body["message"]


def test_base64_has_no_limit_of_numbers_here() -> None:
    assert len(wanted(input=["text"] * 500_001, encoding_format="base64")["documents"]) == 500_001


@pytest.mark.parametrize(
    "name", ["gpt-4", f"{NAME}:passage", f"{NAME}:document:NQ", f"{NAME}:query:None", "", 5, ":query"]
)
def test_unknown_models_are_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(GatewayError) as refused:
        check_model(name, IDENTITY)
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
    assert NAME in refused.value.message


def test_numbers_have_the_fewest_digits_that_give_the_float32_back() -> None:
    vectors = np.array([[0.1, 1 / 3, -1e-8, 3e10], [1.0, 2.5, 0.0, 16777216.0]], dtype="<f4")
    prediction: dict[str, Any] = {
        "output": {"embeddings_base64": [base64.b64encode(row.tobytes()).decode() for row in vectors]},
        "metrics": {"input_tokens": 7},
    }
    texts = render(parse({"model": NAME, "input": ["a", "b"]}, IDENTITY).wanted, prediction).decode()
    assert '"embedding":[0.1,0.33333334,-1e-8,30000000000.0]' in texts
    answer = json.loads(texts)
    assert np.array_equal(np.array([one["embedding"] for one in answer["data"]], dtype="<f4"), vectors)
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert (answer["object"], answer["data"][0]["object"], answer["model"]) == ("list", "embedding", NAME)
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    packed = json.loads(
        render(parse({"model": NAME, "input": "a", "encoding_format": "base64"}, IDENTITY).wanted, prediction)
    )
    assert [one["embedding"] for one in packed["data"]] == prediction["output"]["embeddings_base64"]


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
def test_failures_of_predictions_speak_of_this_apis_fields(
    single: bool, error: str, status: int, message: str, param: str | None
) -> None:
    found = as_input(failed({"error": f"Prediction failed: Async prediction failed: {error}"}), single)
    assert (found.status, found.message, found.param) == (status, message, param)
    assert (found.retry_after is not None) == (status == 429)
