"""Fuzzing of request validation: any JSON object is accepted or refused with a GatewayError."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5 import catalog
from e5_cog import openapi, static_schema
from e5_cog.failures import parse_failure
from e5_cog.repository import ROOT
from e5_gateway import cohere_api, replicate_api, tei_api
from e5_gateway.app import ERROR_FORMATS
from e5_gateway.destinations import Destinations, Inner
from e5_gateway.errors import GatewayError
from e5_gateway.openai_api import FIELDS, parse
from e5_gateway.target import Identity

NAME = "e5-mistral-tiny"
SCHEMA = openapi.openapi(static_schema.read(ROOT / "predict.py"))
DESTINATIONS = Destinations(lambda: ["http://127.0.0.1:5000"], Inner())
VECTOR = np.zeros(256, np.float32)
IDENTITY = Identity(NAME, VECTOR, SCHEMA, "0.23.1", catalog.get(NAME), "0" * 64, 0.0, "", "float32", 4096)
WORDS = st.sampled_from(
    [
        "",
        NAME,
        f"{NAME}:query",
        f"{NAME}-passage",
        f"{NAME}:query:NQ",
        "query",
        "passage",
        "int8",
        "average",
        "http://x",
        "search_query",
        "binary",
        "NONE",
    ]
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
    for api in ERROR_FORMATS:
        orjson.dumps(api.body(error))


@given(bodies(FIELDS))
@settings(max_examples=500, deadline=None)
def test_openai_fields(body: dict[str, Any]) -> None:
    try:
        request = parse(body, IDENTITY, 2_000_000)
    except GatewayError as error:
        check(error)
    else:
        inputs = json.loads(request.prediction())["input"]
        assert inputs.get("queries", inputs.get("documents")) == request.texts


PROMPTED = st.sampled_from(["", "query: ", "passage: ", "Instruct: t\nQuery: "]).flatmap(
    lambda prompt: st.text().map(lambda text: prompt + text)
)
SENTENCES = st.fixed_dictionaries({"source_sentence": PROMPTED, "sentences": st.lists(PROMPTED, min_size=1)})


@given(
    bodies((*tei_api.EMBED_FIELDS, "parameters", "add_special_tokens")),
    st.none() | PROMPTED | st.lists(PROMPTED, min_size=1) | SENTENCES,
    st.sampled_from([NAME, "e5-small", "my-e5"]),
    st.sampled_from([tei_api.parse_root, tei_api.parse_embed, tei_api.parse_similarity, tei_api.parse_tokenize]),
)
@settings(max_examples=500, deadline=None)
def test_tei_fields(body: dict[str, Any], inputs: Any, model: str, parse: tei_api.Parse) -> None:
    body |= {} if inputs is None else {"inputs": inputs}
    entry = catalog.get(model) if model in catalog.names() else None
    try:
        answer, content = parse(body, replace(IDENTITY, model=model, catalog_entry=entry), 2_000_000)
    except GatewayError as error:
        check(error)
        return
    given = body["inputs"]
    texts = [given["source_sentence"], *given["sentences"]] if isinstance(given, dict) else given
    sent = json.loads(content)["input"]
    served = sent.get("queries", []) + sent.get("documents", [])
    assert answer.queries == len(sent.get("queries", []))
    for index, text in zip(answer.order, served, strict=True):
        whole = texts if isinstance(texts, str) else texts[index]
        assert whole in (text, f"query: {text}", f"passage: {text}")
    assert sorted(answer.order) == list(range(1 if isinstance(texts, str) else len(texts)))


@given(bodies(cohere_api.RERANK_FIELDS), st.booleans())
@settings(max_examples=500, deadline=None)
def test_rerank_fields(body: dict[str, Any], complete: bool) -> None:
    body = {"query": "which?", "documents": ["this"]} | body if complete else body
    try:
        content, response = cohere_api.parse_rerank(body, IDENTITY)
    except GatewayError as error:
        check(error)
    else:
        inputs = json.loads(content)["input"]
        assert inputs["query"] == body["query"]
        scores = [float(index % 3) for index, _ in enumerate(inputs["documents"])]
        prediction = {"output": {"scores": [scores], "truncated": [0]}, "metrics": {"input_tokens": 1}}
        results = json.loads(orjson.dumps(response.render(prediction, "2")))["results"]
        assert len(results) == min(len(scores), body.get("top_n") or len(scores))


@given(bodies(cohere_api.EMBED_FIELDS), st.booleans(), st.sampled_from("12"))
@settings(max_examples=500, deadline=None)
def test_embed_fields(body: dict[str, Any], complete: bool, version: str) -> None:
    body = {"texts": ["this"], "input_type": "search_query"} | body if complete else body
    try:
        content, response = cohere_api.parse_embed(body, IDENTITY, 2_000_000, version)
    except GatewayError as error:
        check(error)
    else:
        inputs = json.loads(content)["input"]
        assert inputs.get("queries", inputs.get("documents")) == body["texts"]
        assert set(response.types) <= set(cohere_api.EMBEDDING_TYPES)


@given(VALUES)
@settings(max_examples=500, deadline=None)
def test_replicate_inputs_are_those_of_the_schema(inputs: Any) -> None:
    try:
        accepted = replicate_api.check_inputs(inputs, IDENTITY)
    except GatewayError as error:
        check(error)
    else:
        assert set(accepted) <= set(SCHEMA["components"]["schemas"]["Input"]["properties"])


@given(bodies(tuple(SCHEMA["components"]["schemas"]["Input"]["properties"])))
@settings(max_examples=500, deadline=None)
def test_accepted_replicate_inputs_have_the_types_of_predict(inputs: dict[str, Any]) -> None:
    try:
        accepted = replicate_api.check_inputs(inputs, IDENTITY)
    except GatewayError as error:
        check(error)
        return
    for name, value in accepted.items():
        if name in ("task", "query", "document", "file"):
            assert isinstance(value, str)
        elif name in ("queries", "documents"):
            assert all(isinstance(text, str) for text in value)
        elif name == "normalize":
            assert isinstance(value, bool)
        else:
            assert value in SCHEMA["components"]["schemas"][name]["enum"]


@given(bodies(replicate_api.FIELDS))
@settings(max_examples=300, deadline=None)
def test_replicate_fields(body: dict[str, Any]) -> None:
    try:
        replicate_api._webhook(body, DESTINATIONS)
    except GatewayError as error:
        check(error)
    try:
        replicate_api._owner_and_name(body.get("version"), IDENTITY)
    except GatewayError as error:
        check(error)


@given(st.text() | st.none() | st.integers())
def test_failure_reason_is_never_empty(error: object) -> None:
    assert parse_failure(error).message


@given(st.text())
@settings(max_examples=300)
def test_replicate_cursor(text: str) -> None:
    try:
        replicate_api._parse_cursor(text)
    except GatewayError as error:
        check(error)


UNITS = {"h": 3600, "m": 60, "s": 1}
COUNTS = st.integers(0, 90) | st.integers(0, 999_999_999)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(UNITS, COUNTS)), COUNTS, st.booleans())
@settings(max_examples=500)
def test_cancel_after_is_the_sum_of_its_units(counts: dict[str, int], plain: int, with_units: bool) -> None:
    counts = {unit: counts[unit] for unit in UNITS if unit in counts}  # in the order of the format
    header = "".join(f"{count}{unit}" for unit, count in counts.items()) if with_units else str(plain)
    expected = sum(count * UNITS[unit] for unit, count in counts.items()) if with_units else plain
    if 5 <= expected <= 365 * 24 * 3600:
        assert replicate_api.parse_cancel_after(header) == expected
    else:
        with pytest.raises(GatewayError, match="Cancel-After: must be a duration of 5 s to 8,760 h"):
            replicate_api.parse_cancel_after(header)


@given(st.text() | st.text("0123456789hms .-+٣", max_size=12))
@settings(max_examples=500)
def test_any_cancel_after_is_refused_or_within_the_limits(header: str) -> None:
    try:
        seconds = replicate_api.parse_cancel_after(header)
    except GatewayError as error:
        check(error)
    else:
        assert seconds is not None and 5 <= seconds <= 365 * 24 * 3600
        assert set(header) <= set("0123456789hms")
