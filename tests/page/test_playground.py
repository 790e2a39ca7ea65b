"""The page's functions without a browser: form, code snippets, answers, error messages."""

import ast
import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastapi
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import e5_playground
from e5 import catalog, tasks
from e5_cog.server import free_port
from e5_playground import actions, answer, client, examples, files, form, head, raw, results, snippets
from e5_playground.client import Failure, Served
from e5_playground.form import Form, FormError, request
from e5_playground.snippets import Target

TARGET = Target("http://127.0.0.1:8000", "e5-mistral-tiny")
KEYED = Target("https://e5.example", "e5-small", key_required=True)
NASTY = 'it\'s "so" $HOME `x` \\n {a} ${b} <b>ü</b> 日本 🙂 \u202e\u2028\u200b \t!'


def filled(**fields: Any) -> Form:
    return replace(Form("t", "", "", False, "float", "truncate"), **fields)


def answered(sent: dict[str, Any], dimensions: int = 4, **more: Any) -> dict[str, Any]:
    """An answer in the API's format, with random vectors."""
    left, right = form.sides(sent)
    vectors = np.random.default_rng(0).standard_normal((len(left) + len(right), dimensions)).astype(np.float32)
    scores = answer.similarities(vectors)[: len(left), len(left) :]
    is_base64 = sent.get("encoding_format") == "base64"
    output = {
        "embeddings": None if is_base64 else vectors.tolist(),
        "embeddings_base64": [base64.b64encode(row.tobytes()).decode() for row in vectors] if is_base64 else None,
        "score": None,
        "scores": scores.tolist() if left and right else None,
    }
    return {
        "status": "succeeded",
        "output": output,
        "metrics": {"texts": len(vectors), "model_ms": 1.5},
        "logs": "",
    } | more


def test_defaults_and_help_come_from_predict() -> None:
    assert form.inputs().default["task"] == "Given a web search query, retrieve relevant passages that answer the query"
    assert form.inputs().choices["long_texts"] == ["truncate", "error", "average"]
    assert "never with documents" in form.inputs().help["task"]


def test_one_text_is_sent_as_a_string_and_several_as_a_list() -> None:
    assert request(filled(queries="a\n\n  \n", documents="b")) == {"task": "t", "query": "a", "document": "b"}
    assert request(filled(queries="a\r\nb")) == {"task": "t", "queries": ["a", "b"]}
    assert request(filled(documents=' ["a\\nb", "c"] ')) == {"documents": ["a\nb", "c"]}
    options = {"normalize": True, "encoding_format": "base64", "long_texts": "average"}
    assert request(filled(documents="a", task="", **options)) == {"document": "a", **options}


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ('["a", ', "line 1, column"),
        ("[a text in brackets", "begins with ["),
        ('["a", 1]', "Item 2 of the JSON list is a number"),
        ("[null]", "is null"),
        ("[[]]", "is a list"),
        ("[" * 100_000, "nested too deeply"),
        ('["\\ud800"]', "half of a character"),
    ],
)
def test_invalid_list_of_texts_is_reported_at_its_field(box: str, words: str) -> None:
    with pytest.raises(FormError, match=words.replace("[", r"\[")) as caught:
        request(filled(queries="a", documents=box))
    assert caught.value.field == "documents"


def test_empty_form_is_not_sent() -> None:
    for boxes in ({}, {"queries": "[]"}, {"documents": " \n "}):
        with pytest.raises(FormError, match="no text yet") as caught:
            request(filled(**boxes))
        assert caught.value.field == ""


def test_presets_are_the_trained_tasks_and_follow_the_task() -> None:
    names = [name for _, name in examples.presets()]
    assert names[1:] != []
    assert set(names[1:]) == set(tasks.names())
    assert examples.preset_of(form.inputs().default["task"]) == "MSMARCO"
    assert examples.preset_of(tasks.instruction("STS"), "Ocnli") == "Ocnli"  # they share one task
    assert examples.preset_of("mine", "STS") == examples.CUSTOM


def test_examples_are_valid_requests_and_one_is_multilingual() -> None:
    assert all(request(example.form) for example in examples.EXAMPLES)
    assert [example.name for example in examples.EXAMPLES if example.multilingual] == ["languages"]
    assert "documents" not in request(examples.get("duplicates").form)
    multilingual = {name for name in catalog.names() if Served(name).multilingual}
    assert multilingual == {name for name in catalog.names() if name.startswith("multilingual-")}
    assert not Served("unheard of").multilingual


SENT: list[dict[str, Any]] = [
    {"task": NASTY, "query": NASTY, "documents": [NASTY, "b"], "normalize": True},
    {"task": "", "queries": ["a", "b"]},
    {"document": NASTY, "encoding_format": "base64", "long_texts": "average"},
]


@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_curl_snippet_sends_the_request(sent: dict[str, Any], target: Target, tmp_path: Path) -> None:
    program = tmp_path / "curl"
    program.write_text('#!/bin/sh\nfor part in "$@"; do printf "%s\\0" "$part"; done\n')
    program.chmod(0o700)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GATEWAY_API_KEY": "secret"}
    done = subprocess.run(["bash", "-c", snippets.curl(target, sent)], capture_output=True, env=path, check=True)
    parts = done.stdout.decode().split("\0")
    assert parts[1] == f"{target.base}/predictions"
    assert json.loads(parts[-2]) == {"input": sent}
    assert ("Authorization: Bearer secret" in parts) is target.key_required


@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("target", [TARGET, KEYED])
def test_python_snippets_send_the_request(sent: dict[str, Any], target: Target) -> None:
    call = next(
        node
        for node in ast.walk(ast.parse(snippets.replicate_python(target, sent)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "client.run"
    )
    assert ast.literal_eval(call.args[0]) == f"e5/{target.model}"
    assert ast.literal_eval(call.keywords[0].value) == sent
    tree = ast.parse(snippets.openai_python(target, sent))
    assigned = {ast.unparse(node.targets[0]): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    left, right = form.sides(sent)
    assert [ast.literal_eval(assigned[name]) for name in ("queries", "documents") if name in assigned] == [
        side for side in (left, right) if side
    ]


@pytest.mark.skipif(shutil.which("node") is None, reason="NOT TESTED: node is not installed")
@pytest.mark.parametrize("sent", SENT)
def test_javascript_snippet_sends_the_request(sent: dict[str, Any], tmp_path: Path) -> None:
    package = tmp_path / "node_modules" / "replicate"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "replicate", "type": "module", "main": "index.js"}')
    (package / "index.js").write_text(
        "export default class { constructor(o) { this.o = o; }"
        " async run(ref, o) { return {scores: JSON.stringify([ref, this.o, o]), toString() { return 1; }}; } }"
    )
    code = snippets.replicate_javascript(TARGET, sent).replace("console.log(output);", "console.log(output.scores);")
    (tmp_path / "request.mjs").write_text(code, "utf-8")
    done = subprocess.run(["node", "request.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    reference, options, given_ = json.loads(done.stdout)
    assert (reference, options["baseUrl"]) == ("e5/e5-mistral-tiny", "http://127.0.0.1:8000/v1")
    assert given_ == {"input": sent}


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_quoted_for_every_language(text: str) -> None:
    written = snippets._string(text)
    assert json.loads(written) == text
    assert ast.literal_eval(written) == text
    assert "\u202e" not in written
    assert "\u2028" not in written


def test_long_request_is_a_file_to_download() -> None:
    sent = {"task": "t", "query": "q", "documents": ["a document " * 10] * 300}
    assert snippets.is_long(sent)
    assert json.loads(snippets.file_content(sent)) == {"input": sent}
    for _, _, write in snippets.SNIPPETS:
        written = write(TARGET, sent)
        assert "request.json" in written
        assert len(written) < 1_500
    for write in (snippets.replicate_python, snippets.openai_python):
        ast.parse(write(KEYED, sent))


def test_code_of_an_empty_form_says_what_is_missing() -> None:
    shown = actions.code(filled(), "", TARGET)
    assert all("There is no text yet" in str(code) for code in shown[1:5])
    assert str(shown[4]).count("//") >= 1  # a comment in each language


def test_snippets_use_the_browsers_address() -> None:
    assert actions.base({"origin": "https://e5.example"}, "http://127.0.0.1:1/x") == "https://e5.example"
    assert actions.base({"origin": "null", "host": "a:1"}, "http://a:1/x") == "http://a:1"
    proxied = {"host": "127.0.0.1:8000", "x-forwarded-proto": "https", "x-forwarded-host": "e5.example"}
    assert actions.base(proxied, "http://127.0.0.1:8000/x") == "https://e5.example"


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_answers_are_parsed_in_both_formats(encoding_format: str) -> None:
    sent = {"queries": ["a", "b"], "document": "c", "encoding_format": encoding_format}
    parsed = answer.parse(sent, answered(sent, logs="Ready\nWarning: 1 of 3 texts were cut to 4096 tokens\n"))
    assert parsed.vectors.shape == (3, 4)
    assert parsed.scores is not None
    assert parsed.scores.shape == (2, 1)
    assert parsed.warnings == ("1 of 3 texts were cut to 4096 tokens",)


def test_smaller_vectors_are_shown_as_numbers() -> None:
    def vectors(encoding_format: str, rows: list[bytes], scales: list[float] | None = None) -> Any:
        output = {"embeddings_base64": [base64.b64encode(row).decode() for row in rows], "scales": scales}
        sent = {"queries": ["a", "b"], "encoding_format": encoding_format}
        return answer.parse(sent, {"output": output}).vectors.tolist()

    assert vectors("int8", [b"\x7f\x81", b"\x00\x7f"], [0.5, 2]) == [[63.5, -63.5], [0, 254]]
    assert vectors("ubinary", [b"\xa0", b"\x01"])[0] == [1, -1, 1, -1, -1, -1, -1, -1]
    assert vectors("float16", [b"\x00\x3c\x00\xbc", b"\x00\x00\x00\x40"]) == [[1, -1], [0, 2]]


@pytest.mark.parametrize(
    "broken",
    [
        {"output": None},
        {"output": {}},
        {"output": {"embeddings": [[1.0]], "scores": None}},
        {"output": {"embeddings": [[1.0], [1.0, 2.0]], "scores": None}},
        {"output": {"embeddings_base64": ["!", "!"]}},
        {"output": {"embeddings": [[1.0], [2.0]], "scores": [[1.0, 2.0]]}},
    ],
)
def test_answers_that_do_not_match_the_request_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(answer.AnswerError, match="The API's answer has"):
        answer.parse({"query": "a", "document": "b"}, broken)


def test_rankings_are_sorted_by_score_and_escaped() -> None:
    sent = {"query": "<script>", "documents": ["<img src=x onerror='1'>", "b", 'c"']}
    body = answered(sent)
    body["output"]["scores"] = [[-5.0, 70.25, 3.0]]
    shown = results.result(answer.parse(sent, body), 0.0123)
    assert shown.index("70.25") < shown.index("3.00") < shown.index("-5.00")
    assert "<img" not in shown
    assert "<script" not in shown
    assert "from 0 to 100" in shown
    assert "12.3 ms" in shown
    body["output"]["scores"] = [[88.0, 70.25, 73.0]]
    assert "from 60 to 100" in results.result(answer.parse(sent, body), 0.0123)


def test_texts_of_one_kind_are_compared_with_each_other() -> None:
    sent = {"queries": ["a", "b", "c"]}
    shown = results.result(answer.parse(sent, answered(sent)), 0.1)
    assert shown.count(">100.0<") == 3
    assert "Closest" in shown
    alone = results.result(answer.parse({"document": "a"}, answered({"document": "a"})), 0.1)
    assert "With a query beside it" in alone


def test_warnings_and_truncated_texts_are_shown() -> None:
    sent = {"query": "a", "document": "b"}
    body = answered(sent, logs="Warning: `task` is empty: queries are embedded without it", metrics={"truncated": 1})
    shown = results.result(answer.parse(sent, body), 0.1)
    assert "<code>task</code> is empty" in shown
    assert "1 of 2 texts" in shown


@pytest.mark.parametrize(("queries", "documents"), [(1, 2_000), (1_000, 1_000), (2_000, 0), (0, 2_000)])
def test_html_of_large_answers_is_limited(queries: int, documents: int) -> None:
    text = "word " * 40
    sent = {"queries": [text] * queries, "documents": [text] * documents}
    body = answered(sent, 64)
    started = time.perf_counter()
    parsed = answer.parse(sent, body)
    shown = results.result(parsed, 1) + results.vectors(parsed) + raw.shown(body)[0]
    assert len(shown) < 400_000
    assert "more: the download has all" in shown
    assert time.perf_counter() - started < 5


def test_large_json_is_shortened() -> None:
    small = answered({"query": "a", "document": "b"})
    text, complete = raw.shown(small)
    assert complete
    assert json.loads(text) == small
    text, complete = raw.shown(answered({"queries": ["a"] * 50, "documents": ["b"] * 50}, 256))
    assert not complete
    assert "… 250 more" in text
    assert len(text) < raw.MOST_WHOLE


def failure(status: int, body: Any, **headers: str) -> Failure:
    result = client.read(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(result, Failure), result
    return result


def test_errors_are_shown_without_class_names() -> None:
    error = "Prediction failed: Async prediction failed: InputError: `document` is empty: pass the text"
    assert failure(200, {"status": "failed", "error": error}) == Failure(
        "`document` is empty: pass the text", "documents"
    )
    error = "InputError: `queries[3]` has 7 characters: see `E5_MAX_CHARACTERS`"
    assert failure(200, {"status": "failed", "error": error}).field == "queries"
    assert (
        failure(200, {"status": "failed", "error": "OverloadError: too much is waiting"}).message
        == "Too much is waiting"
    )
    assert failure(200, {"status": "failed"}).message == "The prediction failed, and the server did not say why."
    assert failure(200, b"<html>").message == "The answer is not the API's JSON."


def test_http_statuses_have_messages() -> None:
    detail = [{"loc": ["body", "input", "queries"], "msg": '"a" is not of type "array"'}]
    assert failure(422, {"detail": detail}) == Failure(
        'The API does not accept this: queries: "a" is not of type "array".', "queries"
    )
    assert failure(401, {"detail": "no"}).field == "key"
    assert "in 7 seconds" in failure(429, {}, **{"Retry-After": "7"}).message
    assert "in a moment" in failure(429, b"").message
    assert "still starting" in failure(503, {"detail": "wait", "status": "STARTING"}).message
    assert "still starting" in failure(503, {"error": {"message": "the model is STARTING: wait"}}).message
    assert (
        failure(503, {"detail": "the model is DOWN: no answer", "status": "DOWN"}).message
        == "The model is DOWN: no answer"
    )
    assert "busy" in failure(409, {}).message
    assert "fewer or shorter" in failure(413, b"").message
    assert failure(500, b"").message == "The API answered with status 500."
    assert failure(502, {"error": {"message": "bad gateway of Bob"}}).message == "Bad gateway of Bob"


def test_unreachable_server_is_a_failure() -> None:
    reply = asyncio.run(client.predict(f"http://127.0.0.1:{free_port()}", {"query": "a"}))
    assert isinstance(reply.result, Failure)
    assert "cannot be reached" in reply.result.message
    keyed = asyncio.run(client.predict("http://127.0.0.1:9", {"query": "a"}, "a\nb"))
    assert isinstance(keyed.result, Failure)
    assert keyed.result.field == "key"


def test_model_is_the_first_of_the_list() -> None:
    listed = {"data": [{"id": "multilingual-e5-small", "dimensions": 384, "max_tokens": 512}]}
    served = client.first_model(listed)
    assert isinstance(served, Served)
    assert served.multilingual
    line = actions.model_line(served)
    assert "384 dimensions · texts of up to 512 tokens · 100 languages · does not use the task" in line
    assert client.first_model({"data": [{"id": "x"}]}) == Served("x")
    lists: list[dict[str, Any]] = [{}, {"data": []}, {"data": [1]}, {"data": None}]
    for broken in lists:
        assert isinstance(client.first_model(broken), Failure)


def test_files_have_random_folders_and_are_swept(tmp_path: Path) -> None:
    first, second = (Path(files.write(tmp_path, "answer.json", b"x" * 10)) for _ in range(2))
    assert first.name == second.name == "answer.json"
    assert first.parent != second.parent
    assert len(first.parent.name) == 32
    os.utime(first.parent, (1, 1))
    files.sweep(tmp_path / files.FOLDER, 2, 100)
    assert (first.exists(), second.exists()) == (False, True)
    files.sweep(tmp_path / files.FOLDER, 2, 5)
    assert not second.exists()


def test_preview_tags_of_other_sites_are_removed() -> None:
    page = b'<head>\n<meta property="og:image"\n content="https://x" /><meta name="viewport" /></head>'
    assert head.without_previews(page) == b'<head><meta name="viewport" /></head>'


@pytest.mark.parametrize("key_required", [False, True])
def test_page_does_not_hide_existing_routes(key_required: bool) -> None:
    app = fastapi.FastAPI()
    app.get("/v1/models")(lambda: {"data": []})
    assert e5_playground.mount(app, "http://127.0.0.1:1", key_required) is app

    async def get(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as browser:
            return await browser.get(path)

    assert asyncio.run(get("/v1/models")).json() == {"data": []}
    page = asyncio.run(get("/")).text
    assert "E5 embeddings" in page
    assert ("API key" in page) is key_required
    for other in ("raw.githubusercontent.com", "fonts.googleapis.com", "cdnjs", "og:image"):
        assert other not in page
    icon = asyncio.run(get("/favicon.ico"))
    assert icon.headers["content-type"] == "image/svg+xml"
