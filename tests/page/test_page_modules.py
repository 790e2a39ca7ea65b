"""The page's modules one by one, in Chromium, against Python: numpy, csv, json, ast, the shell and Node."""

import ast
import base64
import csv
import io
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from e5_cog.repository import ROOT
from tests.page.chromium import opened

PAGE = ROOT / "e5_gateway" / "page"
NASTY = 'it\'s "so" $HOME `x` \\n {a} ${b} <b>ü</b> 日本 🙂 \u202e\u2028\u200b \t!'
TARGET = {"base": "http://127.0.0.1:8000", "model": "e5-mistral-tiny", "keyRequired": False}
KEYED = {"base": "https://e5.example/page", "model": "e5-small", "keyRequired": True}
Call = Callable[..., Any]


CALL = """async ([module, name, text]) => {
  const plain = (value) => value instanceof Set ? [...value] : !ArrayBuffer.isView(value) ? value
    : Array.from(value, (each) => Number.isFinite(each) ? each : String(each)); // JSON has no NaN
  const file = ({name, base64, size}) => new File(
    [base64 === undefined ? new Uint8Array(size) : Uint8Array.from(atob(base64), (each) => each.charCodeAt(0))], name);
  const values = JSON.parse(text, (_, value) => value?.isFile ? file(value) : value);
  const {[name]: exported} = await import(new URL(`page/${module}`, document.baseURI));
  try {
    let result = await exported(...values);
    if (result instanceof Blob) {
      const bytes = new Uint8Array(await result.arrayBuffer());
      result = {base64: btoa(Array.from(bytes, (each) => String.fromCharCode(each)).join(""))};
    }
    return JSON.stringify({result}, (_, value) => value instanceof File ? value.name : plain(value));
  } catch (error) { return JSON.stringify({error: error.message, field: error.field ?? null}); }
}"""


def file(name: str, content: bytes | int = b"a") -> dict[str, Any]:
    """A File for call(). A number is the length of one that is all zeros."""
    if isinstance(content, int):
        return {"isFile": True, "name": name, "size": content}
    return {"isFile": True, "name": name, "base64": base64.b64encode(content).decode()}


def data_url(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


class PageError(Exception):
    """An exception of a module, with the field that it names."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(message)
        self.field = field


@pytest.fixture(scope="module")
def call(browser: Browser, url: str) -> Iterator[Call]:
    """Calls a function that a module exports, and returns its result as JSON. Raises PageError.

    Files go in as file() writes them, and come out as their names; Blobs come out as base64.
    """
    with opened(browser, url) as tab:

        def call(module: str, name: str, *arguments: Any) -> Any:
            answer = json.loads(tab.page.evaluate(CALL, [module, name, json.dumps(arguments)]))
            if "error" in answer:
                raise PageError(answer["error"], answer["field"])
            return answer.get("result")

        yield call


# ---- request.js: what was typed → the request


GIVEN: list[dict[str, Any]] = [
    {"name": "task", "kind": "text", "label": "Task", "default": "web search", "modes": ["prediction", "rerank"]},
    {"name": "queries", "one": "query", "kind": "texts", "label": "Queries", "default": None},
    {"name": "documents", "one": "document", "kind": "texts", "label": "Documents", "default": None},
    {"name": "normalize", "kind": "flag", "label": "Normalize", "default": False, "modes": ["prediction"]},
    {"name": "long_texts", "kind": "choice", "label": "Long texts", "default": "truncate"},
    {"name": "layer", "kind": "number", "label": "Layer", "default": None, "integer": True, "minimum": 1, "maximum": 9},
    {"name": "factors", "kind": "json", "label": "Factors", "default": None},
    {"name": "depth", "kind": "number", "label": "Depth", "default": 3, "integer": True},
    {"name": "names", "kind": "texts", "label": "Names", "default": ["x", "y"]},
    {"name": "top_n", "kind": "number", "label": "Top n", "default": None, "integer": True, "modes": ["rerank"]},
    {"name": "file", "kind": "file", "label": "File", "default": None, "modes": ["prediction"]},
    {"name": "sample", "kind": "file", "label": "Sample", "default": None},
]
FIELDS = [{"modes": ["prediction", "rerank"], "required": False, "minimum": None, "maximum": None} | f for f in GIVEN]
VALUES: dict[str, Any] = {
    **{"task": "web search", "queries": "", "documents": "", "normalize": False, "long_texts": "truncate"},
    **{"layer": "", "factors": "", "depth": "3", "names": "x\ny", "top_n": "", "file": None, "sample": None},
}


def request(call: Call, mode: str = "prediction", fields: Any = None, **values: Any) -> Any:
    return call("request.js", "requestOf", mode, fields or FIELDS, VALUES | values, "some-model")


def test_one_text_is_sent_as_a_string_and_several_as_a_list(call: Call) -> None:
    def sent(**values: Any) -> Any:
        answer = request(call, **values)
        assert answer["path"] == "predictions"
        return answer["body"]["input"]

    both = {"task": "web search", "query": "a", "document": "b"}
    assert sent(queries="a\n\n  \n", documents="b") == both
    assert sent(queries=" a\r\nb ") == {"task": "web search", "queries": ["a", "b"]}
    assert sent(documents=' ["a\\nb", "c"] ') == {"documents": ["a\nb", "c"]}
    assert sent(queries="a", task="") == {"task": "", "query": "a"}
    assert sent(documents="a", names="") == {"document": "a", "names": []}
    options = {"normalize": True, "long_texts": "average"}
    assert sent(documents="a", layer="3", factors="[1.5, null]", **options) == {
        **{"document": "a", "layer": 3, "factors": [1.5, None]},
        **options,
    }


def test_rerank_takes_one_query_and_says_which_model(call: Call) -> None:
    sent = request(call, "rerank", queries="a", documents="b", top_n="1", normalize=True)
    assert sent["path"] == "v2/rerank"
    assert sent["body"] == {
        **{"model": "some-model", "task": "web search", "query": "a", "documents": ["b"]},
        **{"top_n": 1},
    }
    for boxes, field in (
        ({"documents": "b"}, "queries"),
        ({"queries": "a\nb"}, "queries"),
        ({"queries": "a"}, "documents"),
    ):
        with pytest.raises(PageError) as caught:
            request(call, "rerank", **boxes)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"documents": '["a", '}, "documents", "read as a JSON list, which it is not"),
        ({"documents": "[a text in brackets"}, "documents", "goes into a list of one"),
        ({"queries": '["a", 1]'}, "queries", "Item 2 of the JSON list is 1"),
        ({"queries": "[null]"}, "queries", "Item 1 of the JSON list is null"),
        ({"queries": "[[]]"}, "queries", "Item 1 of the JSON list is []"),
        ({"queries": "[" * 100_000}, "queries", "which it is not"),
        ({"queries": '["a", "\\ud800"]'}, "queries", "Text 2 has half of a character at position 0"),
        ({}, "", "no text yet"),
        ({"queries": "[]", "documents": " \n "}, "", "no text yet"),
        ({"queries": "a", "layer": "0"}, "layer", "a whole number, at least 1, at most 9"),
        ({"queries": "a", "layer": "1.5"}, "layer", "a whole number"),
        ({"queries": "a", "layer": "?"}, "layer", "a whole number"),
        ({"queries": "a", "factors": "{"}, "factors", "must be JSON"),
        ({"queries": "a", "depth": ""}, "depth", "Depth is empty: the default is 3"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_its_field(call: Call, values: Any, field: str, words: str) -> None:
    with pytest.raises(PageError, match=re.escape(words)) as caught:
        request(call, **values)
    assert caught.value.field == field


MIB = 2**20


def test_file_of_texts_goes_alone(call: Call) -> None:
    texts = file("texts.jsonl")
    sent = {"task": "web search", "normalize": True, "file": "texts.jsonl"}
    assert request(call, file=texts, normalize=True) == {"path": "predictions", "body": {"input": sent}}
    for boxes in ({"queries": "a"}, {"documents": "a\nb"}):
        with pytest.raises(PageError, match="A file cannot be combined with texts") as caught:
            request(call, file=texts, **boxes)
        assert caught.value.field == "file"
    assert "file" not in request(call, "rerank", file=texts, queries="a", documents="b")["body"]
    both = request(call, sample=texts, documents="a")["body"]["input"]  # another file does not have the texts
    assert both == {"document": "a", "sample": "texts.jsonl"}
    with pytest.raises(PageError, match=r"no text yet: .*, or choose a file"):
        request(call, sample=texts)
    with pytest.raises(PageError, match=r"one document\.$"):
        request(call, fields=FIELDS[:-2])


@pytest.mark.parametrize("name", ["file", "sample"])
def test_files_that_cannot_be_sent_are_refused(call: Call, name: str) -> None:
    def sent(size: int) -> Any:
        values: dict[str, Any] = {"documents": "a" if name == "sample" else "", name: file("a.csv", size)}
        return request(call, **values)["body"]["input"]

    for size, words in ((0, "a.csv is empty"), (23 * MIB + 1, "a.csv is larger than 23 MiB: upload it")):
        with pytest.raises(PageError, match=words) as caught:
            sent(size)
        assert caught.value.field == name
    assert sent(23 * MIB)[name] == "a.csv"


def test_required_input_must_be_given(call: Call) -> None:
    fields = [*FIELDS, {**FIELDS[5], "name": "height", "label": "Height", "required": True}]
    with pytest.raises(PageError, match="Height is needed") as caught:
        request(call, fields=fields, queries="a", height="")
    assert caught.value.field == "height"


def test_texts_of_a_file_are_the_same_in_a_box(call: Call) -> None:
    for texts in (["a", "b c"], ["a\nb"], ["a\rb"], [" a"], ["[a"], [NASTY, "[]"], ['"'], ["x"] * 1000):
        box = call("request.js", "boxOf", texts)
        assert "\r" not in box  # a box would turn it into a new line
        assert call("request.js", "parseTexts", "queries", box) == texts
    assert call("request.js", "boxOf", ["a", "b"]) == "a\nb"


# ---- dataurl.js: files ↔ data URLs


def test_files_are_data_urls_on_the_way(call: Call) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 4 * MIB * 3 // 4 + 1):
        content = rng.bytes(size)
        sent = call("dataurl.js", "withData", {"input": {"file": file("a", content), "task": "t"}})["input"]
        assert sent == {"task": "t", "file": data_url(content)}
        assert call("dataurl.js", "sizeOf", sent["file"]) == size
        assert base64.b64decode(call("dataurl.js", "blobOf", sent["file"])["base64"]) == content
    types = {"a.CSV": "text/csv", "a.tsv": "text/tab-separated-values", "csv": "application/octet-stream"}
    for name, kind in types.items():  # whatever the system calls them
        sent = call("dataurl.js", "withData", {"input": {"file": file(name)}})["input"]["file"]
        assert sent == data_url(b"a").replace("application/octet-stream", kind)
    assert call("dataurl.js", "withData", {"model": "m", "query": "q"}) == {"model": "m", "query": "q"}
    with pytest.raises(PageError):
        call("dataurl.js", "blobOf", "data:;base64,%%")


# ---- schema.js: the OpenAPI document → fields


def document(properties: dict[str, Any], rerank: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    schemas = {
        "Input": {"properties": properties, **more},
        "Kind": {"enum": ["x", "y"], "title": "kind", "type": "string"},
    }
    body = {"requestBody": {"content": {"application/json": {"schema": {"properties": rerank}}}}}
    return {
        "info": {"x-model": {"id": "m", "prompt": "instruct"}},
        "security": [{"key": []}],
        "paths": {"/v2/rerank": {"post": body}} if rerank else {},
        "components": {"schemas": schemas},
    }


TEXTS = {
    "query": {"type": "string", "nullable": True, "x-order": 1, "description": "A query."},
    "queries": {"type": "array", "items": {"type": "string"}, "nullable": True, "x-order": 4, "title": "Queries"},
    "document": {"type": "string", "nullable": True, "x-order": 2},
    "documents": {"type": "array", "items": {"type": "string"}, "nullable": True, "x-order": 5},
}


def test_fields_follow_the_schema(call: Call) -> None:
    properties = TEXTS | {
        "task": {"type": "string", "default": "t", "x-order": 0},
        "kind": {
            "allOf": [{"$ref": "#/components/schemas/Kind"}],
            "default": "y",
            "x-order": 3,
            "description": "Which.",
        },
        "top_k": {"type": "integer", "minimum": 1, "maximum": 5, "default": 2, "x-order": 6},
        "shape": {"type": "object", "x-order": 7},
        "is_new": {"type": "boolean", "default": False, "x-order": 8},
        "is_old": {"type": "boolean", "nullable": True, "default": None, "x-order": 9},
        "maybe": {"allOf": [{"$ref": "#/components/schemas/Kind"}], "default": None, "x-order": 10},
        "file": {"type": "string", "format": "uri", "nullable": True, "default": None, "x-order": 11},
        "links": {"type": "array", "items": {"type": "string", "format": "uri"}, "x-order": 12},
    }
    whole = document(properties, required=["shape"])
    fields = call("schema.js", "fieldsOf", whole)
    assert [(field["name"], field["kind"]) for field in fields] == [
        *[("task", "text"), ("queries", "texts"), ("documents", "texts"), ("kind", "choice"), ("top_k", "number")],
        *[("shape", "json"), ("is_new", "flag"), ("is_old", "choice"), ("maybe", "choice")],
        *[("file", "file"), ("links", "texts")],
    ]
    by_name = {field["name"]: field for field in fields}
    assert (by_name["queries"]["one"], by_name["queries"]["help"]) == ("query", "A query.")
    assert (by_name["kind"]["choices"], by_name["kind"]["default"], by_name["kind"]["help"]) == (
        ["x", "y"],
        "y",
        "Which.",
    )
    assert (by_name["top_k"]["minimum"], by_name["top_k"]["maximum"], by_name["top_k"]["label"]) == (1, 5, "Top k")
    assert by_name["is_old"]["choices"] == [None, True, False] and by_name["maybe"]["choices"] == [None, "x", "y"]
    assert [field["name"] for field in fields if field["required"]] == ["shape"]
    assert call("schema.js", "modesOf", whole) == ["prediction"]
    assert call("schema.js", "modelOf", whole)["keyRequired"] is True


def test_task_is_left_out_for_prefix_models(call: Call) -> None:
    whole = document(TEXTS | {"task": {"type": "string"}})
    assert "task" in [field["name"] for field in call("schema.js", "fieldsOf", whole)]
    whole["info"]["x-model"]["prompt"] = "prefix"
    assert "task" not in [field["name"] for field in call("schema.js", "fieldsOf", whole)]


def test_rerank_is_offered_where_the_server_has_it(call: Call) -> None:
    rerank = {"query": {}, "documents": {}, "task": {}, "top_n": {"type": "integer", "minimum": 1}, "rank_fields": {}}
    whole = document(TEXTS | {"task": {"type": "string"}, "normalize": {"type": "boolean"}}, rerank)
    modes = {field["name"]: field["modes"] for field in call("schema.js", "fieldsOf", whole)}
    both = ["prediction", "rerank"]
    assert modes == {
        **{"task": both, "queries": both, "documents": both},
        **{"normalize": ["prediction"], "top_n": ["rerank"]},
    }
    assert call("schema.js", "modesOf", whole) == both
    assert call("schema.js", "modesOf", document({"query": TEXTS["query"]}, rerank)) == ["prediction"]


# ---- answer.js: formats, against numpy


def test_all_formats_are_decoded_as_numpy_does(call: Call) -> None:
    rng = np.random.default_rng(0)
    floats = np.concatenate([rng.standard_normal(61), [0.0, 1e-7, -65504.0]]).astype("<f4")
    encoded = {"base64": floats, "float16": floats.astype("<f2"), "int8": rng.integers(-127, 128, 64).astype("i1")}
    expected = {
        "base64": floats,
        "float16": encoded["float16"].astype("<f4"),
        "int8": encoded["int8"] * np.float32(0.5),
    }
    for name, values in encoded.items():
        decoded = call("answer.js", "decode", base64.b64encode(values.tobytes()).decode(), name, 0.5)
        np.testing.assert_array_equal(np.float32(decoded), expected[name])
    bits = rng.integers(0, 256, 8).astype("u1")
    decoded = call("answer.js", "decode", base64.b64encode(bits.tobytes()).decode(), "ubinary", None)
    np.testing.assert_array_equal(decoded, np.unpackbits(bits).astype(int) * 2 - 1)
    every = np.arange(1 << 16, dtype="<u2").view("<f2")
    decoded = call("answer.js", "decode", base64.b64encode(every.tobytes()).decode(), "float16", None)
    np.testing.assert_array_equal(np.array(decoded, dtype=object).astype(float), every.astype(float))


def test_similarities_are_cosines(call: Call) -> None:
    vectors = np.random.default_rng(1).standard_normal((7, 33))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = call("answer.js", "similarities", vectors.tolist())
    np.testing.assert_allclose(near, 100 * unit @ unit.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "no output"),
        ({}, "neither vectors nor tokens"),
        ({"embeddings": [[1.0]], "scores": None}, "1 vectors for 2 texts"),
        ({"embeddings": [[1.0], [1.0, 2.0]], "scores": None}, "different lengths"),
        ({"embeddings": [[], []], "scores": None}, "different lengths"),
        ({"embeddings_base64": ["!", "!"]}, "cannot be read"),
        ({"embeddings": [[1.0], [2.0]], "scores": [[1.0, 2.0]]}, "another shape"),
        ({"embeddings": [[1.0], [None]]}, "vectors with NaN"),
        ({"embeddings": [[1.0], None]}, "different lengths"),
        ({"embeddings": [[1.0], [2.0]], "scores": [[None]]}, "scores that are no numbers"),
        ({"token_ids": [[1], [2]]}, "neither vectors nor tokens"),
    ],
)
def test_answers_that_do_not_match_the_request_are_refused(call: Call, output: Any, words: str) -> None:
    request = {"path": "predictions", "body": {"input": {"query": "a", "document": "b", "encoding_format": "base64"}}}
    with pytest.raises(PageError, match=words):
        call("answer.js", "answerOf", request, {"output": output})


def test_missing_logs_and_metrics_are_none(call: Call) -> None:
    request = {"path": "predictions", "body": {"input": {"query": "a"}}}
    answer = call("answer.js", "answerOf", request, {"output": {"embeddings": [[1.0]]}, "logs": None, "metrics": None})
    assert (answer["warnings"], answer["metrics"], answer["vectors"]) == ([], {}, [[1.0]])


def test_answer_to_a_file_is_a_file(call: Call) -> None:
    request = {"path": "predictions", "body": {"input": {"file": file("texts.jsonl")}}}
    response: dict[str, Any] = {"output": {"embeddings": None, "tokens": [], "file": data_url(b"PAR1")}}
    answer = call("answer.js", "answerOf", request, {**response, "metrics": {"texts": 3}, "logs": "Warning: x"})
    assert (answer["file"], answer["texts"], answer["vectors"]) == (response["output"]["file"], [], None)
    assert (answer["metrics"], answer["warnings"]) == ({"texts": 3}, ["x"])
    assert call("results.js", "summary", answer, 20) == "Done: 3 texts, in 20.0 ms."
    for wrong in (None, "https://example.com/x", "javascript:alert(1)", [[1.0]]):
        with pytest.raises(PageError, match="no file of vectors"):
            call("answer.js", "answerOf", request, {"output": {"embeddings": [[1.0]], "file": wrong}})


def test_truncated_texts_of_a_rerank_are_counted_with_the_query(call: Call) -> None:
    request = {"path": "v2/rerank", "body": {"query": "a", "documents": ["b", "c", "d"]}}
    response = {"results": [{"index": 2, "relevance_score": 0.5}], "truncated": [0, 2], "query_truncated": True}
    answer = call("answer.js", "answerOf", request, response)
    assert answer["truncated"] == [0, 1, 3]
    assert answer["ranking"] == [{"index": 2, "score": 0.5}]
    with pytest.raises(PageError, match="that were not sent"):
        call("answer.js", "answerOf", request, {"results": [{"index": 3, "relevance_score": 0.5}]})


def test_bars_begin_at_60_where_no_score_is_below(call: Call) -> None:
    assert call("heatmap.js", "scaleOf", [[70.0, 100.0]]) == {"low": 60, "high": 100}
    assert call("heatmap.js", "scaleOf", [[70.0, 59.9]]) == {"low": 0, "high": 100}


# ---- pca.js


@pytest.mark.parametrize(("count", "width"), [(200, 64), (40, 1024), (3, 16), (2, 5), (1, 4), (30, 2), (30, 1)])
def test_map_shows_the_principal_components(call: Call, count: int, width: int) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((count, width)) * np.geomspace(5, 1, width)
    found = call("pca.js", "pca", vectors.tolist())
    centered = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    expected = np.zeros((count, 2))
    axes = min(2, width, count)
    expected[:, :axes] = (left * values)[:, :axes]
    points = np.array(found["points"])
    assert (points.max(axis=0) >= -points.min(axis=0) - 1e-9).all()  # the largest coordinate is positive
    signs = np.where((points * expected).sum(axis=0) < 0, -1, 1)
    scale = np.abs(expected).max() or 1
    total = (values**2).sum() or 1
    np.testing.assert_allclose(np.array(found["shares"])[:axes], (values**2 / total)[:axes], atol=1e-4)
    np.testing.assert_allclose(points / scale, expected * signs / scale, atol=5e-3)


def test_equal_texts_have_one_place_on_the_map(call: Call) -> None:
    assert call("pca.js", "pca", [[1, 2, 3]] * 4) == {"points": [[0, 0]] * 4, "shares": [0, 0]}


# ---- files.js


def test_records_without_the_column_are_counted(read_file: Callable[..., Any]) -> None:
    records = '{"text": "a", "id": "1"}\n{"id": "2"}\n{"text": ""}\n{"text": 3}\n{"text": "b"}'
    assert read_file("a.jsonl", records) == [["text", ["a", "b"]], ["id", ["1", "2"]]]
    assert read_file("a.jsonl", records, "count") == 5


FILES = """async ([name, bytes, part]) => {
  const {columnsOf} = await import(new URL("page/files.js", document.baseURI));
  try {
    const columns = await columnsOf(new File([typeof bytes === "string" ? bytes : Uint8Array.from(bytes)], name));
    return part ? columns[part] : columns.names.map((each) => [each, columns.texts(each)]);
  } catch (error) { return error.message; }
}"""


@pytest.fixture(scope="module")
def read_file(browser: Browser, url: str) -> Iterator[Callable[[str, str | bytes], Any]]:
    with opened(browser, url) as tab:

        def read(name: str, content: str | bytes, part: str | None = None) -> Any:
            return tab.page.evaluate(FILES, [name, content if isinstance(content, str) else list(content), part])

        yield read


def test_files_of_texts_are_read(read_file: Callable[..., Any]) -> None:
    assert read_file("a.txt", "\ufeffone\r\n\r\n two \n") == [["text", ["one", "two"]]]
    assert read_file("noending", "one") == [["text", ["one"]]]
    assert read_file("a.CSV", 'id,text\n1,"a, ""b""\nc"\n2,d\n') == [["text", ['a, "b"\nc', "d"]], ["id", ["1", "2"]]]
    assert read_file("a.csv", "one\ntwo\n") == [["text", ["one", "two"]]]
    assert read_file("a.csv", "Query\none\n") == [["Query", ["one"]]]
    assert read_file("a.tsv", "x\tpassage\n1\tone, two\n") == [["passage", ["one, two"]], ["x", ["1"]]]
    assert read_file("a.jsonl", '{"id": "1", "text": "one"}\n\n{"id": "2", "text": "two"}\n') == [
        ["text", ["one", "two"]],
        ["id", ["1", "2"]],
    ]
    assert read_file("a.jsonl", '"one"\n"t\\nwo"') == [["text", ["one", "t\nwo"]]]
    assert read_file("a.json", '["one", "two"]') == [["text", ["one", "two"]]]
    assert read_file("a.csv", "id;text\n1;a, b\n2;c\n") == [["text", ["a, b", "c"]], ["id", ["1", "2"]]]
    assert read_file("a.csv", "text,text,\na,b,c\n") == [["text", ["a"]], ["text 2", ["b"]], ["column 3", ["c"]]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", " \n", "has no texts"),
        ("a.pdf", "x", "the page reads .txt, .csv"),
        ("a.csv", "a,b\n1\n", "Row 2 has 1 cell, the first row 2: put cells that contain , in quotes"),
        ("a.csv", 'a,b\n1,"2', "quote that is not closed"),
        ("a.csv", "text\n", "has no texts"),
        ("a.jsonl", '{"a": 1}', "has no texts"),
        ("a.jsonl", '"a"\nb', "Line 2 is not JSON"),
        ("a.jsonl", "[1]", "neither a string nor an object"),
        ("a.json", "{}", "not a JSON list"),
        ("a.txt", "a" * (8 * 2**20 + 1), "larger than 8 MiB"),
    ],
)
def test_files_without_texts_are_refused(read_file: Callable[..., Any], name: str, content: Any, words: str) -> None:
    assert words in read_file(name, content)


def test_csv_is_read_as_python_does(call: Call) -> None:
    rng = random.Random(0)
    texts = ["a,b", "a,b\n", "a,\n,b\n", 'a,"b"\n', "a,", '"",""']
    for _ in range(60):
        rows = [
            ["".join(rng.choices('ab ",\n\r', k=rng.randrange(5))) for _ in range(3)]
            for _ in range(rng.randrange(1, 5))
        ]
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator=rng.choice(["\n", "\r\n"])).writerows(rows)
        texts.append(buffer.getvalue())
    for text in texts:
        rows = [row or [""] for row in csv.reader(io.StringIO(text, newline=""))]  # Python's empty line is []
        assert call("files.js", "csvRows", text, ",") == rows


# ---- link.js, listing.js


def test_link_has_the_changes_alone(call: Call) -> None:
    empty = {"task": "t", "queries": "", "normalize": False, "long_texts": "truncate"}
    values = empty | {"queries": f"{NASTY}\n#&=+%", "normalize": True}
    fragment = call("link.js", "toFragment", values, empty)
    assert "task" not in fragment
    assert call("link.js", "fromFragment", f"#{fragment}", empty) == values
    assert call("link.js", "toFragment", empty, empty) == "empty"
    assert call("link.js", "fromFragment", "#empty", empty) == empty
    assert call("link.js", "fromFragment", "#key=secret&__proto__=x&normalize=yes", empty) == empty
    assert call("link.js", "toFragment", {"queries": "x" * 40_000}, {"queries": ""}) is None
    chosen = {"file": file("texts.jsonl"), "queries": "a"}
    assert call("link.js", "toFragment", chosen, {"file": None, "queries": ""}) == "queries=a"


def test_large_json_is_shortened(call: Call) -> None:
    small = {"output": {"embeddings": [[1.5, -2]], "score": None, "tokens": [], "text": NASTY}}
    shown = call("listing.js", "readable", small, len(json.dumps(small)))
    assert shown["isWhole"] and json.loads(shown["text"]) == small
    large = {"output": {"embeddings": [[0.25] * 256] * 100, "embeddings_base64": ["A" * 2000]}}
    shown = call("listing.js", "readable", large, len(json.dumps(large)))
    assert not shown["isWhole"]
    assert "… 250 more" in shown["text"] and "… 92 more" in shown["text"] and "… 1,880 more" in shown["text"]
    assert len(shown["text"]) < 3_000


def test_files_in_json_are_shortened(call: Call) -> None:
    for size in (1_000, 1_000_000):
        value = {"logs": "a line of the log\n" * 20, "output": {"file": f"data:;base64,{'A' * size}", "tokens": []}}
        shown = call("listing.js", "readable", value, len(json.dumps(value)))
        assert not shown["isWhole"]
        assert f"AAA… {size - 107:,} more" in shown["text"]
        assert json.loads(shown["text"])["logs"] == value["logs"]
    value = {"output": {"file": "data:;base64,QUJD"}}
    assert call("listing.js", "readable", value, 40)["isWhole"]


def test_sizes_are_in_words(call: Call) -> None:
    sizes = {1: "1 byte", 1023: "1,023 bytes", 1536: "1.5 KiB", 52_000: "51 KiB", 2**20: "1 MiB", 2**31: "2,048 MiB"}
    assert {size: call("dom.js", "bytes", size) for size in sizes} == sizes


# ---- api.js: errors in words


READ = """async ([status, body, headers]) => {
  const {read} = await import(new URL("page/api.js", document.baseURI));
  try { return read(status, new Headers(headers), body); } catch (error) { return [error.field, error.message]; }
}"""


@pytest.fixture(scope="module")
def failure(browser: Browser, url: str) -> Iterator[Callable[..., list[str]]]:
    with opened(browser, url) as tab:

        def failure(status: int, body: Any, **headers: str) -> list[str]:
            text = body if isinstance(body, str) else json.dumps(body)
            read: list[str] = tab.page.evaluate(READ, [status, text, headers])
            assert isinstance(read, list), read
            return read

        yield failure


def test_errors_are_shown_without_class_names(failure: Callable[..., list[str]]) -> None:
    def failed(error: str | None) -> list[str]:
        return failure(200, {"status": "failed", "error": error})

    error = "Prediction failed: Async prediction failed: InputError: `document` is empty: pass the text"
    assert failed(error) == ["documents", "`document` is empty: pass the text"]
    error = "InputError: `queries[3]` has 7 characters: see `E5_MAX_CHARACTERS`"
    assert failed(error) == ["queries", "Query 4 has 7 characters: see `E5_MAX_CHARACTERS`"]
    assert failed("InputError: `layer` is 99") == ["layer", "`layer` is 99"]
    assert failed("OverloadError: too much is waiting")[1] == "Too much is waiting"
    assert failed(None)[1] == "The prediction failed, and the server did not say why"
    assert failure(200, {"status": "failed", "error": {"message": "x"}})[1] == "X"
    assert failure(422, {"detail": [None]})[0] == ""
    assert failure(200, "<html>")[1] == "The server’s answer is not JSON."


def test_http_statuses_have_messages(failure: Callable[..., list[str]]) -> None:
    detail = [{"loc": ["body", "input", "queries"], "msg": '"a" is not of type "array"'}]
    words = 'The server does not accept this: queries: "a" is not of type "array"'
    assert failure(422, {"detail": detail}) == ["queries", words]
    assert failure(401, {"detail": "no"})[0] == "api-key"
    assert "in 7 seconds" in failure(429, {}, **{"Retry-After": "7"})[1]
    assert "in 1 second." in failure(429, {}, **{"Retry-After": "1"})[1]
    assert "in a moment" in failure(429, "")[1]
    assert "still starting" in failure(503, {"detail": "wait", "status": "STARTING"})[1]
    assert "still starting" in failure(503, {"error": {"message": "the model is STARTING: wait"}})[1]
    assert failure(503, {"detail": "the model is DOWN", "status": "DOWN"})[1] == "The model is DOWN"
    assert "busy" in failure(409, {})[1]
    assert "fewer or shorter" in failure(413, "")[1]
    assert failure(500, "")[1] == "The server answered with status 500"
    assert failure(400, {"message": "`top_n` is 0", "detail": "`top_n` is 0"}) == ["top_n", "`top_n` is 0"]


# ---- snippets.js: the code sends the request


SENT: list[dict[str, Any]] = [
    {"task": NASTY, "query": NASTY, "documents": [NASTY, "b"], "normalize": True},
    {"task": "", "queries": ["a", "b"], "factors": [1.5, None], "shape": {}},
    {"document": NASTY, "encoding_format": "base64", "long_texts": "average"},
]
RERANKED = {"model": "m", "task": NASTY, "query": NASTY, "documents": [NASTY, "b"], "top_n": 1, "long_texts": "error"}


def code(call: Call, target: dict[str, Any], sent: dict[str, Any], label: str, path: str = "predictions") -> str:
    body = {"input": sent} if path == "predictions" else sent
    written: dict[str, str] = dict(call("snippets.js", "snippets", target, {"path": path, "body": body}))
    return written[label]


@pytest.mark.parametrize("sent", [*SENT, RERANKED])
@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_curl_sends_the_request(call: Call, sent: dict[str, Any], target: dict[str, Any], tmp_path: Path) -> None:
    program = tmp_path / "curl"
    program.write_text('#!/bin/sh\nfor part in "$@"; do printf "%s\\0" "$part"; done\n')
    program.chmod(0o700)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GATEWAY_API_KEY": "secret"}
    path, body = ("v2/rerank", sent) if sent is RERANKED else ("predictions", {"input": sent})
    command = code(call, target, sent, "cURL", path)
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, check=True)
    parts = done.stdout.decode().split("\0")
    assert parts[1] == f"{target['base']}/{path}"
    assert json.loads(parts[-2]) == body
    assert ("Authorization: Bearer secret" in parts) is target["keyRequired"]


@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_python_sends_the_request(call: Call, sent: dict[str, Any], target: dict[str, Any]) -> None:
    tree = ast.parse(code(call, target, sent, "Replicate"))
    run = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "client.run")
    assert ast.literal_eval(run.args[0]) == f"e5/{target['model']}"
    assert ast.literal_eval(run.keywords[0].value) == sent
    tree = ast.parse(code(call, target, sent, "OpenAI"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "extra_body"]
    cut = {"long_texts": sent["long_texts"]} if "long_texts" in sent else {}
    bodies = [{"input_type": "query", "task": sent["task"]} | cut] if "task" in sent else []
    bodies += [{"input_type": "document"} | cut] if "document" in sent or "documents" in sent else []
    assert [ast.literal_eval(keyword.value) for keyword in calls] == bodies
    dropped = sorted(set(sent) & {"factors", "shape"})
    assert all(name in code(call, target, sent, "OpenAI").partition("does not have: ")[2] for name in dropped)
    sides = [sent.get("queries") or [sent["query"]] if "query" in sent or "queries" in sent else []]
    sides.append(sent.get("documents") or ([sent["document"]] if "document" in sent else []))
    assert [ast.literal_eval(assigned[name]) for name in ("queries", "documents") if name in assigned] == [
        side for side in sides if side
    ]


def test_code_for_tokens_prints_pieces(call: Call) -> None:
    sent = {"query": "a", "document": "b", "encoding_format": "tokens"}
    assert 'print(output["pieces"])' in code(call, TARGET, sent, "Replicate")
    assert "console.log(output);" in code(call, TARGET, sent, "Node.js")
    assert code(call, TARGET, sent, "OpenAI").startswith("# OpenAI's API has no tokens")


@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_cohere_sends_the_request(call: Call, target: dict[str, Any]) -> None:
    tree = ast.parse(code(call, target, RERANKED, "Cohere", "v2/rerank"))
    values = {ast.unparse(node.targets[0]): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    rerank = values["answer"]
    assert isinstance(rerank, ast.Call)
    given = {keyword.arg: keyword.value for keyword in rerank.keywords if keyword.arg != "documents"}
    literal = {str(name): ast.literal_eval(value) for name, value in given.items()}
    extra = literal.pop("request_options")["additional_body_parameters"]
    assert literal | extra | {"documents": ast.literal_eval(values["documents"])} == RERANKED


@pytest.mark.skipif(shutil.which("node") is None, reason="NOT TESTED: node is not installed")
@pytest.mark.parametrize("sent", SENT)
def test_javascript_sends_the_request(call: Call, sent: dict[str, Any], tmp_path: Path) -> None:
    fake_client(tmp_path, "return {scores: JSON.stringify([ref, this.o, o]), toString() { return 1; }};")
    script = code(call, TARGET, sent, "Node.js").replace("console.log(output);", "console.log(output.scores);")
    (tmp_path / "request.mjs").write_text(script, "utf-8")
    done = subprocess.run(["node", "request.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    reference, options, given = json.loads(done.stdout)
    assert (reference, options["baseUrl"]) == ("e5/e5-mistral-tiny", "http://127.0.0.1:8000/v1")
    assert given == {"input": sent}


def fake_client(folder: Path, run: str) -> None:
    """A package in the place of Replicate's: the body of run(ref, o), where this.o are the client's options."""
    package = folder / "node_modules" / "replicate"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "replicate", "type": "module", "main": "index.js"}')
    (package / "index.js").write_text(
        f"export default class {{ constructor(o) {{ this.o = o; }} async run(ref, o) {{ {run} }} }}"
    )


SHELLS = [name for name in ("bash", "dash") if shutil.which(name)]


@pytest.mark.skipif(shutil.which("jq") is None, reason="NOT TESTED: jq is not installed")
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_curl_sends_a_file(call: Call, target: dict[str, Any], shell: str, tmp_path: Path) -> None:
    program, content, vectors = tmp_path / "curl", os.urandom(300_000), os.urandom(1000)
    (tmp_path / "answer.json").write_text(json.dumps({"output": {"file": data_url(vectors)}}), "utf-8")
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > arguments; cat > body; cat answer.json\n')
    program.chmod(0o700)
    name = f"{NASTY.replace('/', '')[:80]} (1).jsonl"
    (tmp_path / name).write_bytes(content)
    command = code(call, target, {"task": NASTY, "normalize": True, "file": file(name)}, "cURL")
    assert len(command) < 1_500
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GATEWAY_API_KEY": "secret"}
    subprocess.run([shell, "-c", command], cwd=tmp_path, env=environment, check=True)
    sent = json.loads((tmp_path / "body").read_text("utf-8"))
    assert sent == {"input": {"task": NASTY, "normalize": True, "file": data_url(content)}}
    arguments = (tmp_path / "arguments").read_text("utf-8").split("\0")
    assert arguments[1] == f"{target['base']}/predictions" and arguments[-2] == "@-"
    assert ("Authorization: Bearer secret" in arguments) is target["keyRequired"]
    assert (tmp_path / "vectors.parquet").read_bytes() == vectors


@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_python_sends_a_file(call: Call, target: dict[str, Any], tmp_path: Path) -> None:
    """The code runs, with a module in the place of the client."""
    written = code(call, target, {"task": NASTY, "file": file("tëxts'.jsonl", b"content")}, "Replicate")
    (tmp_path / "tëxts'.jsonl").write_bytes(b"content")
    (tmp_path / "replicate.py").write_text(
        "import io\nclass Client:\n  def __init__(self, **_): pass\n  def run(self, model, input):\n"
        "    return {'file': io.BytesIO(repr((model, input['task'], input['file'].read())).encode())}\n"
    )
    environment = {"GATEWAY_API_KEY": "secret", "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", written], cwd=tmp_path, env=environment, check=True)
    received = ast.literal_eval((tmp_path / "vectors.parquet").read_text("utf-8"))
    assert received == (f"e5/{target['model']}", NASTY, b"content")


@pytest.mark.skipif(shutil.which("node") is None, reason="NOT TESTED: node is not installed")
def test_javascript_sends_a_file(call: Call, tmp_path: Path) -> None:
    fake_client(tmp_path, "return {file: JSON.stringify([o.input.task, o.input.file.toString()])};")
    (tmp_path / "tëxts'.jsonl").write_bytes(b"content")
    script = code(call, TARGET, {"task": NASTY, "file": file("tëxts'.jsonl")}, "Node.js")
    (tmp_path / "request.mjs").write_text(script, "utf-8")
    subprocess.run(["node", "request.mjs"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "vectors.parquet").read_text("utf-8")) == [NASTY, "content"]


def test_code_with_another_file_prints_scores(call: Call) -> None:
    sent = {"query": "a", "document": "b", "sample": file("x.bin")}
    labels = [label for label, _ in call("snippets.js", "snippets", TARGET, written_request(sent))]
    assert labels == ["cURL", "Replicate", "Node.js"]  # OpenAI's API takes no files
    assert "jq" not in code(call, TARGET, sent, "cURL")
    assert '"sample": open("x.bin", "rb"),' in code(call, TARGET, sent, "Replicate")
    assert 'print(output["scores"])' in code(call, TARGET, sent, "Replicate")
    assert "console.log(output.scores);" in code(call, TARGET, sent, "Node.js")
    assert call("snippets.js", "snippets", TARGET, written_request(sent | {"document": "b" * 30_000})) == []


def written_request(sent: dict[str, Any]) -> dict[str, Any]:
    return {"path": "predictions", "body": {"input": sent}}


def test_any_text_is_quoted_for_every_language(call: Call) -> None:
    rng = random.Random(0)
    pool = [*string.printable, *map(chr, range(0x80, 0x2100)), "\u2028", "\u202e", "\ufeff", "🙂", "日", "\U0010ffff"]
    for text in ["".join(rng.choices(pool, k=rng.randrange(40))) for _ in range(100)]:
        written = call("snippets.js", "string", text)
        assert json.loads(written) == text
        assert ast.literal_eval(written) == text
        assert not set(written) & set("\u202e\u2028\u200b\xa0\ufeff")


def test_long_request_is_a_file(call: Call) -> None:
    sent = {"task": "t", "query": "q", "documents": ["a document " * 10] * 300}
    request = {"path": "predictions", "body": {"input": sent}}
    assert call("snippets.js", "isLong", request)
    assert json.loads(call("snippets.js", "fileOf", request)) == {"input": sent}
    for label, written in call("snippets.js", "snippets", KEYED, request):
        assert "request.json" in written and len(written) < 1_500
        if label in ("Replicate", "OpenAI"):
            ast.parse(written)
    ast.parse(code(call, KEYED, RERANKED | {"documents": sent["documents"]}, "Cohere", "v2/rerank"))


# ---- the files themselves


def test_every_module_is_preloaded_and_listed_in_the_readme() -> None:
    modules = {path.name for path in PAGE.glob("*.js")}
    index = (PAGE / "index.html").read_text("utf-8")
    assert set(re.findall(r'modulepreload" href="page/(\w+\.js)"', index)) | {"app.js"} == modules
    readme = (PAGE / "README.md").read_text("utf-8")
    assert {name for name in modules if f"`{name}`" not in readme} == set()


def test_nothing_of_the_page_makes_html_or_stores_anything() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|localStorage|sessionStorage|cookie"
    )
    for path in PAGE.glob("*.js"):
        assert not re.search(forbidden, path.read_text("utf-8")), path.name
    assert not re.search(
        r"<script(?! type=\"module\" src)|\son\w+=|style=|<style", (PAGE / "index.html").read_text("utf-8")
    )
    assert not re.search(
        r"https?://", (PAGE / "style.css").read_text("utf-8") + (PAGE / "index.html").read_text("utf-8")
    )
