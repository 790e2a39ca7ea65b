"""scripts/check_server.py as a program: exit status, output, fixtures without weights, and what it cannot ask."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5_cog.repository import ROOT
from e5_cog.server import free_port
from evaluation.client import http_client
from evaluation.server_check import main as program
from tests.evaluation import stand_ins
from tests.evaluation.http_stand_in import Request, Response, serving
from tests.evaluation.wrong_model import WrongModel

MODEL = "e5-mistral-tiny-256"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = program.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def right(wrong_decoder: WrongModel) -> Iterator[str]:
    with serving(stand_ins.openai(lambda texts: np.stack([wrong_decoder.embed(text) for text in texts]))) as url:
        yield url


@pytest.fixture(scope="module")
def without_eos(wrong_decoder: WrongModel) -> Iterator[str]:
    with serving(stand_ins.tei(lambda texts: np.stack([wrong_decoder.embed(t, "no EOS") for t in texts]))) as url:
        yield url


def test_lines(run: Run, without_eos: str, decoder_fixtures: Path) -> None:
    status, out, _ = run("--url", without_eos, "--api", "tei", "--model", MODEL, "--fixtures", decoder_fixtures)
    lines = out.splitlines()
    assert status == 1
    assert lines[0] == f"{without_eos}, API tei, {MODEL}: the client adds the prompts"
    index = lines.index("wrong   special tokens      no EOS")
    assert lines[index + 1].strip().startswith("→ append the last special token")
    assert lines[-1] == "16 right, 2 wrong, 0 unknown"


def test_as_a_program_with_fixtures_it_needs_no_torch(without_eos: str, decoder_fixtures: Path) -> None:
    command = "import runpy, sys; sys.argv[0] = 'check_server.py'\n"
    command += "try: runpy.run_path('scripts/check_server.py', run_name='__main__')\n"
    command += "except SystemExit as end: sys.exit(99 if 'torch' in sys.modules else end.code)"
    arguments = ["--url", without_eos, "--api", "tei", "--model", MODEL, "--fixtures", str(decoder_fixtures), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report["wrong"] == 2 and report["expected"].startswith("decoder.json: the adapter weights of")


def test_with_weights_and_with_fixtures_it_finds_the_same(
    run: Run, without_eos: str, decoder_256: Path, decoder_fixtures: Path, tmp_path: Path
) -> None:
    """--record with a server writes the file, and checks with the same vectors."""
    file = tmp_path / "vectors.json"
    server = ("--url", without_eos, "--api", "tei", "--model", MODEL, "--json")
    status, out, err = run(*server, "--weights", decoder_256, "--record", file)
    assert status == 1 and f"{file}: the vectors of the adapter weights of {MODEL}, float32" in err
    other = run(*server, "--fixtures", file)
    assert other[0] == 1 and strip(other[1]) == strip(out)
    assert file.read_bytes() == decoder_fixtures.read_bytes()


def strip(out: str) -> list[Any]:
    return [(entry["name"], entry["status"], entry["cure"]) for entry in json.loads(out)["findings"]]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights on this machine."""
    from evaluation.server_check import compute

    monkeypatch.setattr(compute, "WEIGHTS", tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_from_outside(run: Run, right: str) -> None:
    """e5-mistral-tiny's facts, and no weights."""
    status, out, err = run("--url", right, "--api", "openai", "--model", "me/e5-mistral-tiny", "--json")
    report = json.loads(out)
    assert "no weights of e5-mistral-tiny on this machine: checking from outside only" in err
    found = {entry["name"]: entry for entry in report["findings"]}
    unknowns = [name for name, entry in found.items() if entry["status"] == "unknown"]
    assert unknowns == ["vectors", "special tokens", "pooling", "prompts", "text"]
    assert "--weights or --fixtures" in found["vectors"]["cure"]
    # The stand-in counts words, and reads 256 tokens instead of this model's 4096.
    assert "for a text of 20 tokens it counts 20: it leaves special tokens out" in found["special tokens"]["evidence"]
    assert found["truncation"]["evidence"] == "cut to 256 tokens instead of 4096; it does not say so"
    assert (
        (status, report["wrong"]) == (1, 1)
        and report["expected"] is None
        and report["served_name"] == "me/e5-mistral-tiny"
    )


@pytest.mark.usefixtures("nowhere")
def test_record_needs_weights(run: Run, tmp_path: Path) -> None:
    status, _, err = run("--model", "e5-small", "--record", tmp_path / "x.json")
    assert status == 2 and "check_server.py: --record needs the model's weights: name their folder" in err


# Servers that cannot be asked


def answers(status: int, body: Any) -> Callable[[Request], Response]:
    return lambda _: Response(status, body)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (answers(404, {"detail": "Not Found"}), "answered 404: Not Found: check the address, the API (openai) and the"),
        (answers(401, {"error": {"message": "no key"}}), "answered 401: no key: set OPENAI_API_KEY to its key"),
        (answers(403, {"error": {"message": "no"}}), "answered 403: no: the key in OPENAI_API_KEY may not use it"),
        (answers(200, b"<html>"), "answered 200: the answer is not JSON: '<html>': check that the server has the API"),
        (answers(200, {"data": []}), "answered 200: the answer has 0 vectors for 1 texts: check that the server has"),
        (answers(500, {"error": "broken"}), "answered 500: broken: see the server's log"),
    ],
)
def test_a_server_that_cannot_be_asked(
    answer: Callable[[Request], Response], message: str, run: Run, decoder_fixtures: Path
) -> None:
    with serving(answer) as url:
        status, _, err = run("--url", url, "--api", "openai", "--model", MODEL, "--fixtures", decoder_fixtures)
    assert status == 2 and f"check_server.py: {url} {message}" in err


def test_a_closed_port(run: Run, decoder_fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "BACKOFF_SECONDS", 0.001)
    url = f"http://127.0.0.1:{free_port()}"
    status, _, err = run("--url", url, "--api", "tei", "--model", MODEL, "--fixtures", decoder_fixtures)
    assert status == 2 and f"check_server.py: {url} cannot be reached" in err


def test_a_server_that_goes_silent_on_odd_input(
    run: Run, wrong_decoder: WrongModel, decoder_fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes the connection for emoji, and never answers afterwards."""
    monkeypatch.setattr(http_client, "BACKOFF_SECONDS", 0.001)
    normal = stand_ins.tei(lambda texts: np.stack([wrong_decoder.embed(text) for text in texts]))
    dead = False

    def answer(request: Request) -> Response | None:
        nonlocal dead
        dead = dead or "👍" in request.body["inputs"][0]
        return None if dead else normal(request)

    with serving(answer) as url:
        status, out, _ = run("--url", url, "--api", "tei", "--model", MODEL, "--fixtures", decoder_fixtures, "--json")
    wrong = {entry["name"]: entry["evidence"] for entry in json.loads(out)["findings"] if entry["status"] == "wrong"}
    assert status == 1 and wrong.keys() == {"emoji", "control characters", "afterwards"}
    assert "no answer" in wrong["emoji"] and "no answer to a plain text" in wrong["afterwards"]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "e5-small"), "give --url and --api, or --record without them"),
        (("--model", "e5-small", "--url", "http://x"), "give --url and --api"),
        (("--url", "http://x", "--api", "tei"), "--model"),
        (("--model", "e5-small", "--record", "a", "--fixtures", "b"), "leave out --weights and --record"),
        (("--model", "e5-small", "--url", "http://x", "--api", "grpc"), "invalid choice: 'grpc'"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "e6-small"), "E5_MODEL=e6-small is not one of the possible values"),
        (("--model", "e5-small", "--weights", "/nowhere"), "/nowhere is not a folder"),
        (("--model", "e5-small", "--fixtures", "/nowhere.json"), "/nowhere.json cannot be read"),
    ],
)
def test_wrong_values(options: tuple[str, ...], message: str, run: Run) -> None:
    status, _, err = run("--url", "http://127.0.0.1:1", "--api", "tei", *options)
    assert status == 2 and message in err


def test_fixtures_of_another_model(run: Run, decoder_fixtures: Path) -> None:
    status, _, err = run("--url", "http://x", "--api", "tei", "--model", "e5-small", "--fixtures", decoder_fixtures)
    assert status == 2 and f"has vectors of {MODEL}, not of e5-small" in err


def test_help_explains_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert "exit status: 0 nothing is wrong" in capsys.readouterr().out
