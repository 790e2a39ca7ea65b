"""The check of a server: nothing wrong with the right ones, and every mistake of the wrong ones is named.

The wrong servers compute with stock transformers (tests/evaluation/wrong_model.py).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5 import Embedder
from evaluation.server_check.main import main
from tests.evaluation import stand_ins
from tests.evaluation.http_stand_in import Request, Response, serving
from tests.evaluation.stand_ins import Embed
from tests.evaluation.wrong_model import WrongModel, prompted
from tests.gateways import Gateway
from tests.reference import Vectors

MODEL = "e5-mistral-tiny"
Report = dict[str, Any]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "REPLICATE_API_TOKEN"):
        monkeypatch.setenv(name, "test-key")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Report]]:
    """Run the program with --json → its exit status and report."""

    def run(answer: Callable[[Request], Response] | str, api: str, fixtures: Path | None, *options: str) -> Any:
        if fixtures is not None:
            model = json.loads(fixtures.read_text("utf-8"))["facts"]["model"]
            options = ("--model", model, "--fixtures", str(fixtures), *options)
        capsys.readouterr()
        if isinstance(answer, str):
            status = main(["--url", answer, "--api", api, "--json", *options])
        else:
            with serving(answer) as url:
                status = main(["--url", url, "--api", api, "--json", *options])
        return status, json.loads(capsys.readouterr().out)

    return run


def problems(report: Report) -> dict[str, str]:
    """Evidence by property of all that is not right."""
    return {entry["name"]: entry["evidence"] for entry in report["findings"] if entry["status"] != "right"}


def finding(report: Report, name: str) -> dict[str, str]:
    found: dict[str, str] = next(entry for entry in report["findings"] if entry["name"] == name)
    return found


Check = Callable[..., tuple[int, Report]]


# Right servers


@pytest.mark.parametrize("api", ["cog", "openai", "replicate"])
def test_nothing_is_wrong_with_this_project_s_servers(
    api: str, check: Check, shared_gateway: Gateway, tiny_fixtures: Path
) -> None:
    assert shared_gateway.server is not None
    url = shared_gateway.server.url if api == "cog" else shared_gateway.url
    status, report = check(url, api, tiny_fixtures, *(("--served-name", f"me/{MODEL}") if api == "replicate" else ()))
    assert (status, problems(report)) == (0, {})
    assert report["server_adds_prompts"] and report["right"] == 18
    assert finding(report, "truncation")["evidence"].startswith("cut to 4096 tokens, with the last special token")
    assert finding(report, "emoji")["evidence"] == "embedded, with the right vector"
    assert "refused: `" in finding(report, "empty text")["evidence"]


@pytest.fixture(scope="module")
def tiny_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tiny") / "tiny.json"
    assert main(["--model", MODEL, "--record", str(file)]) == 0
    return file


def test_nothing_is_wrong_with_tei_on_a_real_e5(check: Check, real_e5_folder: Path, real_e5_model: Embedder) -> None:
    """With weights. The server embeds whole texts."""
    answer = stand_ins.tei(lambda texts: real_e5_model.embed_texts(texts))
    options = ("--model", "intfloat/multilingual-e5-small", "--weights", str(real_e5_folder))
    status, report = check(answer, "tei", None, *options)
    assert status == 0 and not report["server_adds_prompts"]
    assert problems(report) == {}
    assert "merged weights" in report["expected"]


@pytest.mark.parametrize("api", ["tei", "openai", "cog"])
def test_nothing_is_wrong_with_stock_transformers(
    api: str, check: Check, wrong_decoder: WrongModel, decoder_fixtures: Path
) -> None:
    status, report = check(server(wrong_decoder, api, ""), api, decoder_fixtures)
    assert problems(report).keys() <= {"special tokens"} and status == 0
    assert finding(report, "truncation")["evidence"].startswith("cut to 256 tokens, with the last special token")


def server(model: WrongModel, api: str, mistake: str) -> Callable[[Request], Response]:
    """A server that makes the mistake, with another model's mistake in the prompt if it adds the prompts."""

    def whole(texts: Sequence[str]) -> Vectors:
        return np.stack([model.embed(text, mistake) for text in texts])

    def by_side(side: str, texts: Sequence[str], task: str) -> Vectors:
        return whole([prompted(model.decoder, side, text, task, mistake) for text in texts])

    if api == "cog":
        return stand_ins.cog(by_side)
    return stand_ins.openai(whole) if api == "openai" else stand_ins.tei(whole)


# One wrong server for each mistake

SHARED = [
    ("tei", "no EOS", "special tokens", "no EOS"),
    ("tei", "EOS twice", "special tokens", "EOS twice"),
    ("cog", "no BOS", "special tokens", "no BOS"),
    ("tei", "BOS twice", "special tokens", "BOS twice"),
    ("openai", "no special tokens", "special tokens", "no special tokens"),
    ("tei", "CLS pooling", "pooling", "CLS pooling"),
    ("openai", "text lower-cased", "text", "text lower-cased"),
    ("cog", "no prompt", "prompts", "no prompt"),
    ("cog", "query prompt on documents", "prompts", "documents: query prompt"),
    ("cog", "prompt twice", "prompts", "prompt twice"),
    ("tei", "EOS cut off", "truncation", "a text of more than 256 tokens: EOS cut off"),
    ("openai", "beginning cut off", "truncation", "a text of more than 256 tokens: beginning cut off"),
    ("tei", "cut to 128", "truncation", "cut to 128 tokens instead of 256; it does not say so"),
]
DECODER = [
    ("openai", "mean pooling", "pooling", "mean pooling"),
    ("cog", "default task", "prompts", "queries: default task instead of the request's"),
    ("openai", "instruction in front", "prompts", "query prompt in front of the client's"),
    ("tei", "query: in front", "prompts", "query: in front of the text"),
    ("tei", "passage: in front", "prompts", "passage: in front of the text"),
    ("cog", "adapter missing", "adapter", "adapter missing"),
    ("tei", "line breaks replaced by spaces", "text", "line breaks replaced by spaces"),
    ("tei", "not cut", "truncation", "a text of more than 256 tokens: not cut"),
]
ENCODER = [
    ("openai", "last-token pooling", "pooling", "last-token pooling"),
    ("cog", "document prompt on queries", "prompts", "queries: document prompt on queries"),
    ("tei", "query: in front", "prompts", "documents: query prompt in front of the client's; queries: prompt twice"),
    (
        "tei",
        "passage: in front",
        "prompts",
        "documents: prompt twice; queries: document prompt in front of the client's",
    ),
]


@pytest.mark.parametrize(("api", "mistake", "name", "evidence"), SHARED + DECODER)
def test_a_decoder_s_mistake_is_named(
    api: str, mistake: str, name: str, evidence: str, check: Check, wrong_decoder: WrongModel, decoder_fixtures: Path
) -> None:
    assert_named(check(server(wrong_decoder, api, mistake), api, decoder_fixtures), name, evidence)


@pytest.mark.parametrize(("api", "mistake", "name", "evidence"), SHARED + ENCODER)
def test_an_encoder_s_mistake_is_named(
    api: str, mistake: str, name: str, evidence: str, check: Check, wrong_encoder: WrongModel, encoder_fixtures: Path
) -> None:
    assert_named(check(server(wrong_encoder, api, mistake), api, encoder_fixtures), name, evidence)


def assert_named(result: tuple[int, Report], name: str, evidence: str) -> None:
    """The property is wrong with this evidence and a cure, and of the others only the vectors are wrong with it."""
    status, report = result
    assert status == 1
    found = finding(report, name)
    assert found["status"] == "wrong" and evidence in found["evidence"] and found["cure"], report["findings"]
    wrong = {entry["name"] for entry in report["findings"] if entry["status"] == "wrong"}
    assert wrong == ({name} if name == "truncation" else {name, "vectors"}), report["findings"]


# Servers that are wrong in another way


@pytest.fixture(scope="module")
def embed(wrong_decoder: WrongModel) -> Embed:
    return lambda texts: np.stack([wrong_decoder.embed(text) for text in texts])


def other_way(embed: Embed, way: str) -> Callable[[Request], Response]:
    """A TEI server with one fault."""
    right = stand_ins.tei(embed)

    def answer(request: Request) -> Response:
        texts = request.body["inputs"]
        response = right(request)
        match way:
            case "reversed" if len(texts) > 1:
                return Response(200, response.body[::-1])
            case "sorted" if len(texts) > 1:
                return Response(200, [response.body[i] for i in np.argsort([len(text) for text in texts])])
            case "first for all" if len(texts) > 1:
                return Response(200, [response.body[0]] * len(texts))
            case "padding" if len(texts) > 1:
                mean = np.mean(response.body, axis=0)
                return Response(200, (np.array(response.body) + 0.1 * mean).tolist())
            case "500 on batches" if len(texts) > 1:
                return Response(500, {"error": "CUDA out of memory"})
            case "NaN in batches" if len(texts) > 1:
                return Response(200, [*response.body[:-1], [float("nan")] * 256])
            case "one vector short" if len(texts) > 1:
                return Response(200, response.body[1:])
            case "500 on emoji" if "👍" in texts[0]:
                return Response(500, {"error": "codec can't encode character"})
            case "altered emoji" if "👍" in texts[0]:
                return Response(200, embed([text.replace("👍🏽", "?") for text in texts]).tolist())
            case "NaN for empty" if texts == [""]:
                return Response(200, [[float("nan")] * 256])
            case "null for empty" if texts == [""]:
                return Response(200, [[None] * 256])
            case "no message" if texts == [""]:
                return Response(400, {})
            case "not normalized":
                return Response(200, embed(texts).tolist()) if all(texts) else response
            case "always normalized":
                return Response(200, stand_ins.normalized(embed(texts)).tolist()) if all(texts) else response
            case "refuses long" if len(texts[0].split()) > 100:
                return Response(413, {"error": "`inputs` must have less than 110 tokens"})
            case "fails on long" if len(texts[0].split()) > 256:
                return Response(500, {"error": "index out of range"})
            case "NaN" if response.status == 200:
                return Response(200, [[float("nan")] * 256 for _ in texts])
            case "zeros" if response.status == 200:
                return Response(200, [[0.0] * 256 for _ in texts])
            case "shorter" if response.status == 200:
                rows = np.array(response.body)[:, :128]
                return Response(200, (stand_ins.normalized(rows) if request.body["normalize"] else rows).tolist())
            case "other weights" if response.status == 200:
                return Response(200, (np.roll(response.body, 1, axis=1)).tolist())
        return response

    return answer


@pytest.mark.parametrize(
    ("way", "name", "evidence"),
    [
        ("reversed", "order", "in reversed order"),
        ("sorted", "order", "come in the order ["),
        ("first for all", "order", "got no vector of their own"),
        ("padding", "batch", "the other texts of a batch change a vector"),
        ("500 on batches", "batch", "a batch of texts that are fine alone: CUDA out of memory"),
        ("NaN in batches", "batch", "NaN or infinity"),
        ("one vector short", "batch", "7 vectors for 8 texts"),
        ("500 on emoji", "emoji", "fails with 500: codec can't encode character"),
        ("altered emoji", "emoji", "another vector than for the text itself"),
        ("NaN for empty", "empty text", "NaN or infinity"),
        ("null for empty", "empty text", "NaN or infinity"),
        ("not normalized", "normalization", "with normalize=true"),
        ("always normalized", "normalization", "length 1.000 with normalize=false, 1"),
        ("refuses long", "truncation", "of the model's 256 tokens are refused"),
        ("fails on long", "truncation", "a text longer than the model's 256 tokens fails: index out of range"),
        ("NaN", "dimensions", "a plain text's vector has NaN or infinity"),
        ("zeros", "dimensions", "a plain text's vector is all zeros"),
        ("shorter", "dimensions", "128 instead of 256"),
        ("other weights", "vectors", "no known mistake explains it"),
    ],
)
def test_other_faults_are_found(
    way: str, name: str, evidence: str, check: Check, embed: Embed, decoder_fixtures: Path
) -> None:
    status, report = check(other_way(embed, way), "tei", decoder_fixtures)
    found = finding(report, name)
    assert (status, found["status"]) == (1, "wrong") and evidence in found["evidence"] and found["cure"], found
    assert report["wrong"] == 1, report["findings"]


@pytest.mark.parametrize(("limit", "status"), [(4, "right"), (1, "unknown")])
def test_a_server_may_refuse_batches(
    limit: int, status: str, check: Check, embed: Embed, decoder_fixtures: Path
) -> None:
    right = stand_ins.tei(embed)

    def answer(request: Request) -> Response:
        if len(request.body["inputs"]) > limit:
            return Response(413, {"error": f"batch size > {limit}"})
        return right(request)

    code, report = check(answer, "tei", decoder_fixtures)
    assert code == 0 and {finding(report, name)["status"] for name in ("order", "batch")} == {status}


def test_a_refusal_of_long_texts_is_right(check: Check, embed: Embed, decoder_fixtures: Path) -> None:
    right = stand_ins.tei(embed)

    def answer(request: Request) -> Response:
        if len(request.body["inputs"][0].split()) > 260:
            return Response(413, {"error": "`inputs` must have less than 256 tokens"})
        return right(request)

    status, report = check(answer, "tei", decoder_fixtures)
    assert status == 0 and "is refused: `inputs` must" in finding(report, "truncation")["evidence"]


def bfloat16(vectors: Vectors) -> Vectors:
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    rounded: Vectors = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return rounded


@pytest.mark.parametrize(
    ("rounded", "status", "evidence"),
    [
        (bfloat16, 0, "bfloat16"),
        (lambda v: v.astype(np.float16).astype(np.float32), 0, "float16"),
        (lambda v: np.round(v.astype(float), 5), 0, "float32 with 5 decimal digits"),
        (lambda v: np.round(v.astype(float), 2), 1, "2 decimal digits: fewer than 16 bits"),
        (lambda v: np.round(v / np.abs(v).max() * 127) * np.abs(v).max() / 127, 1, "8-bit integers, scaled"),
    ],
)
def test_precision_is_reported(
    rounded: Callable[[Vectors], Any], status: int, evidence: str, check: Check, embed: Embed, decoder_fixtures: Path
) -> None:
    got, report = check(stand_ins.openai(embed, rounded), "openai", decoder_fixtures)
    assert evidence in finding(report, "precision")["evidence"], report["findings"]
    assert got == status, report["findings"]


def test_a_raw_server_of_openai_s_api_that_does_not_normalize(
    check: Check, embed: Embed, decoder_fixtures: Path
) -> None:
    answer = stand_ins.openai(embed, lambda vectors: vectors * 7)
    status, report = check(answer, "openai", decoder_fixtures)
    assert status == 1 and problems(report)["normalization"] == "length 7.000, not 1"
