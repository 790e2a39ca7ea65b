"""Any JSON object gets an answer or a refusal in words, never an exception: what both APIs check of a body."""

import json
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from e5 import catalog
from e5_cog import openapi, static_schema
from e5_cog.repository import ROOT
from e5_gateway import replicate_api
from e5_gateway.errors import GatewayError, cog_body, failure, openai_body, replicate_body
from e5_gateway.openai_api import FIELDS, parse
from e5_gateway.target import Identity

NAME = "e5-mistral-tiny"
SCHEMA = openapi.openapi(static_schema.read(ROOT / "predict.py"))
IDENTITY = Identity(NAME, 256, SCHEMA, "0.23.1", catalog.get(NAME), "0" * 64, 0.0, "")
WORDS = st.sampled_from(
    ["", NAME, f"{NAME}:query", f"{NAME}:query:NQ", "query", "document", "float", "base64", "http://x"]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | WORDS
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


def bodies(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    known = st.dictionaries(st.sampled_from(names), VALUES, max_size=len(names))
    return known | st.dictionaries(st.sampled_from(names) | st.text(), VALUES, max_size=4)


def check(error: GatewayError) -> None:
    assert 400 <= error.status < 500
    assert error.message
    for body in (openai_body, replicate_body, cog_body):
        orjson.dumps(body(error))


@given(bodies(FIELDS))
@settings(max_examples=500, deadline=None)
def test_openais_fields(body: dict[str, Any]) -> None:
    try:
        wanted = parse(body, IDENTITY)
    except GatewayError as error:
        check(error)
    else:
        inputs = json.loads(wanted.prediction())["input"]
        assert inputs.get("queries", inputs.get("documents")) == wanted.texts


@given(VALUES)
@settings(max_examples=500, deadline=None)
def test_the_models_inputs(inputs: Any) -> None:
    try:
        kept = replicate_api.check_inputs(inputs, IDENTITY)
    except GatewayError as error:
        check(error)
    else:
        assert set(kept) <= set(SCHEMA["components"]["schemas"]["Input"]["properties"])


@given(bodies(("task", "query", "document", "normalize", "queries", "documents", "encoding_format")))
@settings(max_examples=500, deadline=None)
def test_what_the_schema_lets_through_has_the_types_of_predict(inputs: dict[str, Any]) -> None:
    try:
        kept = replicate_api.check_inputs(inputs, IDENTITY)
    except GatewayError as error:
        check(error)
        return
    for name, value in kept.items():
        if name in ("task", "query", "document"):
            assert isinstance(value, str)
        elif name in ("queries", "documents"):
            assert all(isinstance(one, str) for one in value)
        elif name == "normalize":
            assert isinstance(value, bool)
        else:
            assert value in ("float", "base64")


@given(bodies(replicate_api.FIELDS))
@settings(max_examples=300, deadline=None)
def test_replicates_fields(body: dict[str, Any]) -> None:
    for work in (lambda: replicate_api._hook(body), lambda: replicate_api._version(body.get("version"), IDENTITY)):
        try:
            work()
        except GatewayError as error:
            check(error)


@given(st.text() | st.none() | st.integers())
def test_the_reason_of_a_failure_is_never_empty(error: object) -> None:
    assert failure(error).message


@given(st.text())
@settings(max_examples=300)
def test_any_cursor(text: str) -> None:
    try:
        replicate_api._cursor(text)
    except GatewayError as error:
        check(error)
