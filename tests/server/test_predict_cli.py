"""scripts/cog_predict.py: output, exit status, and invalid requests rejected before the model is loaded."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import e5
import predict
from e5 import DEFAULT_TASK, Embedder
from e5.corpus.parts import to_vectors
from e5_cog import predict_once as cli
from e5_cog.repository import ROOT

NO_TEXT = "there is no text: pass at least one of `query`, `document`, `queries`, `documents`, `file`"


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E5_DTYPE", "float32")
    monkeypatch.setenv("E5_DEVICE", "cpu")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(settings: object) -> None:
        raise AssertionError("the model was loaded for an invalid request")

    monkeypatch.setattr(e5.Embedder, "from_settings", load)


def run(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/cog_predict.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def output(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    printed = capsys.readouterr()
    answer: dict[str, Any] = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert "Ready: e5-mistral-tiny" in printed.err
    return answer


def test_pair_prints_only_json() -> None:
    done = run("-i", "query=how tall is it?", "--input", "document=It is 300 m high.")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert list(answer) == [field.name for field in dataclasses.fields(predict.Output)]
    assert [answer[name] for name in ("embeddings_base64", "scales", "truncated")] == [None, None, []]
    embedder = Embedder.load(dtype="float32", device="cpu")
    expected = np.concatenate(
        [embedder.embed_queries(["how tall is it?"]), embedder.embed_documents(["It is 300 m high."])]
    )
    np.testing.assert_allclose(answer["embeddings"], expected, rtol=1e-4, atol=1e-4)
    assert answer["scores"] == [[answer["score"]]]
    assert "Ready: e5-mistral-tiny" in done.stderr
    assert len(done.stdout) < 14 * expected.size  # shortest digits and ", ": float64's expansion would take 22 bytes


def test_request_from_stdin_is_written_to_a_file(tmp_path: Path) -> None:
    target = tmp_path / "answer.json"
    done = run("--json", "@-", "-o", str(target), text='{"documents": ["é", "漢字"], "encoding_format": "base64"}')
    assert (done.returncode, done.stdout) == (0, "")
    assert len(json.loads(target.read_text())["embeddings_base64"]) == 2
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask, "setup() makes Cog's files private, not the user's"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "message"),
    [
        ((), {}, 2, NO_TEXT),
        (("-i", "query=a"), {"E5_MODEL": "e5-tiny"}, 2, "E5_MODEL=e5-tiny is not one of the possible values: "),
        (("-i", "query=a"), {"E5_WEIGHTS": str(ROOT / "e5")}, 1, str(ROOT / "e5")),
    ],
)
def test_process_prints_an_error_as_one_line(
    arguments: tuple[str, ...], environment: dict[str, str], status: int, message: str
) -> None:
    done = run(*arguments, **environment)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"cog_predict.py: {message}")
    assert done.stderr.count("\n") == 1


def test_flags_set_lists_and_booleans(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-i", "documents=a=b", "-i", "query=1", "-i", "documents=@c", "-i", "normalize=true"]) == 0
    answer = output(capsys)
    embedder = Embedder.load(dtype="float32", device="cpu")
    expected = np.concatenate(
        [embedder.embed_queries(["1"], normalize=True), embedder.embed_documents(["a=b", "@c"], normalize=True)]
    )
    np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-5)
    assert answer["score"] is None
    assert np.shape(answer["scores"]) == (1, 2)


def test_defaults_are_those_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-i", "query=a"]) == 0
    short = output(capsys)
    everything = {"task": DEFAULT_TASK, "query": "a", "document": None, "normalize": False, "queries": None}
    assert cli.main(["--json", json.dumps(everything)]) == 0
    assert output(capsys) == short


def test_output_replaces_an_existing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request, target = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text('{"query": "a", "encoding_format": "base64"}')
    target.write_text("an older and much longer answer" * 1000)
    assert cli.main(["--json", f"@{request}", "-o", str(target)]) == 0
    assert json.loads(target.read_text())["embeddings"] is None
    assert capsys.readouterr().out == ""


NAMES = "the inputs are task, query, document, normalize, queries, documents, encoding_format"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], NO_TEXT),
        (["-i", "qurey=a"], f"there is no input `qurey`: {NAMES}"),
        (["--json", '{"input": {"query": "a"}}'], f"there is no input `input`: {NAMES}"),
        (["-i", "query"], "-i query: write NAME=VALUE"),
        (["-i", "query="], "`query` is empty: pass the text to embed, or leave it out"),
        (["-i", "query=  "], "`query` is only white space: pass the text to embed, or leave it out"),
        (["-i", "documents=a", "-i", "documents="], "`documents[1]` is empty: pass the text to embed, or leave it out"),
        (["-i", "query=a", "-i", "query=b"], "`query` is given twice, but is not a list"),
        (["-i", "query=a", "-i", "normalize=yes"], '`normalize` is "yes": pass true or false'),
        (["-i", "query=a", "-i", "encoding_format=hex"], '`encoding_format` is "hex": pass one of float, base64'),
        (["--json", "{}"], NO_TEXT),
        (["--json", '{"query": 5}'], "`query` is 5: pass a string"),
        (["--json", '{"query": "a", "task": null}'], "`task` is null: pass a string"),
        (["--json", '{"queries": "a"}'], '`queries` is "a": pass a list of strings'),
        (["--json", '{"queries": ["a", null]}'], '`queries` is ["a", null]: pass a list of strings'),
        (["--json", '{"query": "a", "normalize": 1}'], "`normalize` is 1: pass true or false"),
        (["--json", "[]"], '--json is not an object: pass {"name": value, …}'),
        (["--json", '{"query": "\\ud800"}'], "`query` is not valid Unicode: it has the lone surrogate U+D800"),
        (["--json", '{"query": "a"'], "--json is not JSON in UTF-8: "),
        (["--json", "[" * 100_000], "--json is not JSON in UTF-8: "),
        (["--json", "@no/such/file"], "--json @no/such/file: No such file or directory: name a readable file"),
        (["--json", "@"], "--json @: Is a directory: name a readable file"),
        (["--json", "{}", "-i", "query=a"], "-i and --json exclude each other: use one of them for all inputs"),
        (["-i", "query=a", "-o", "no/such/folder/file"], "--output no/such/folder/file: name a file in a folder that"),
        (["-i", "query=a", "-o", "."], "--output .: name a file in a folder that exists"),
    ],
)
def test_invalid_request_prints_one_line_and_exits_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.partition(": ")[2].startswith(message)


def test_invalid_utf8_is_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"query": "\xff"}')))
    assert cli.main(["--json", "@-"]) == 2
    assert "--json is not JSON in UTF-8" in capsys.readouterr().err


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    assert cli.deliver("text\n", Path(f"/dev/fd/{writer}")) == 0
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "text\n"


def test_help_lists_the_flags_of_cog_predict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("-i", "--input", "--json", "-o", "--output", "@-"))


def test_file_becomes_vectors_beside_the_output(tmp_path: Path, library: Embedder) -> None:
    texts = ["The tower is 300 m high.", "A recipe for soup."]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run("-i", f"file=@{source}", "-o", str(tmp_path / "answer.json"))
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert (answer["file"], answer["embeddings"]) == (str(tmp_path / "answer.parquet"), None)
    vectors = to_vectors(pq.read_table(tmp_path / "answer.parquet"), "float32")
    np.testing.assert_allclose(vectors, library.embed_documents(texts), atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.json", "answer.parquet", "texts.jsonl"]
    in_json = run("--json", json.dumps({"file": f"@{source}"}), "-o", str(tmp_path / "again.json"))
    assert in_json.returncode == 0
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "answer.parquet").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-i", "file=texts.jsonl"), '`file` is "texts.jsonl": pass @ and the name of a file'),
        (("-i", "file=@missing.jsonl"), "`file`: there is no file missing.jsonl"),
        (("-i", "file=@README.md", "-i", "query=a"), "`file` cannot be combined with texts"),
        (("-i", "file=@README.md", "-o", "README.parquet/x.json"), "name a file in a folder that exists"),
        (("-i", "file=@README.md", "-o", "a.parquet"), "the vectors would be written over --output, a.parquet"),
        (("-i", "file=@README.md", "-i", "encoding_format=tokens"), "with `file` choose one of"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_bad_file_is_refused_before_the_model_is_loaded(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main([*arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_input_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, options in (("texts.parquet", ["-o", "texts.json"]), ("vectors.parquet", [])):
        (tmp_path / name).write_bytes(b"text\na\n")
        assert cli.main(["-i", f"file=@{name}", *options]) == 2
        assert "the vectors would be written over the input" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == b"text\na\n"
