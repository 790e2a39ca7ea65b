"""How the check of a server judges distances, numbers and answers, without a model."""

from pathlib import Path

import numpy as np
import pytest

from e5.catalog import get
from evaluation.client.apis import cog_body, openai_answer, prediction_answer, tei_answer
from evaluation.client.http_client import Reply
from evaluation.server_check import fixtures
from evaluation.server_check.candidates import cut, framed, prompt_variants, prompted, text_variants
from evaluation.server_check.check_numbers import precision
from evaluation.server_check.check_truncation import _bisect, _usual_limit
from evaluation.server_check.check_vectors import judge
from evaluation.server_check.expected import Expected, ExpectedText, Facts, probes
from evaluation.server_check.findings import right, unknown, wrong
from evaluation.server_check.mistakes import BY_NAME, MISTAKES, label
from evaluation.server_check.subject import distance
from evaluation.server_check.texts import BATCHED, COMPARED, ODD, TAILS, TASK, Probe, long_probe, words

RIGHT, EOS, POOL, BOTH = (), ("no EOS",), ("mean pooling",), ("no EOS", "mean pooling")
QUERY, DOCUMENT = Probe("q", "query", "How tall?"), Probe("d", "document", "300 m")


@pytest.mark.parametrize(
    ("distances", "tokens", "pooling"),
    [
        ({RIGHT: 1e-8, EOS: 1e-2, POOL: 1e-1, BOTH: 1e-1}, "right", "right"),
        ({RIGHT: 3e-4, EOS: 1e-2, POOL: 1e-1, BOTH: 1e-1}, "right", "right"),  # 16 bits
        ({RIGHT: 1e-2, EOS: 1e-8, POOL: 1e-1, BOTH: 1e-1}, "wrong", "right"),
        ({RIGHT: 1e-4, EOS: 1e-8, POOL: 1e-1, BOTH: 1e-1}, "wrong", "right"),  # a mistake that changes little
        ({RIGHT: 1e-1, EOS: 1e-1, POOL: 1e-1, BOTH: 1e-7}, "wrong", "wrong"),
        ({RIGHT: 1e-1, EOS: 1e-1, POOL: 1e-7, BOTH: 1e-7}, "unknown", "wrong"),  # CLS pooling sees no EOS
        ({RIGHT: 3e-4, EOS: 4e-4, POOL: 1e-1, BOTH: 1e-1}, "unknown", "right"),
        ({RIGHT: 2e-2, EOS: 3e-2, POOL: 1e-1, BOTH: 1e-1}, "unknown", "unknown"),  # nothing explains it
        ({RIGHT: float("inf"), EOS: 3e-2, POOL: 1e-1, BOTH: 1e-1}, "unknown", "unknown"),
    ],
)
def test_the_nearest_candidates_decide(distances: dict[tuple[str, ...], float], tokens: str, pooling: str) -> None:
    verdict = judge(distances)
    assert (verdict.aspect("special tokens")[0], verdict.aspect("pooling")[0]) == (tokens, pooling)


def test_two_mistakes_that_look_alike_are_both_named() -> None:
    verdict = judge({RIGHT: 1e-1, ("CLS pooling",): 2e-8, ("last-token pooling",): 1e-8})
    assert verdict.aspect("pooling") == ("wrong", "CLS pooling or last-token pooling")


def test_every_mistake_of_the_candidates_is_registered() -> None:
    names = {name for kind in ("instruct", "prefix") for p in (QUERY, DOCUMENT) for name in prompt_variants(kind, p)}
    names |= set(text_variants("a"))
    names |= {name for candidate, _ in [*framed([1], [5], [2]), *cut([1], [5], [2], 3)] for name in candidate}
    names |= {"last-token pooling", "mean pooling", "CLS pooling", "adapter missing"}
    assert names == set(BY_NAME)
    assert all(mistake.cure for mistake in MISTAKES)
    assert label(()) == "the right computation" and label(BOTH) == "no EOS and mean pooling"


def test_prompts_and_their_mistakes() -> None:
    assert prompted("prefix", QUERY) == "query: How tall?" and prompted("prefix", DOCUMENT) == "passage: 300 m"
    assert prompted("instruct", QUERY) == f"Instruct: {TASK}\nQuery: How tall?"
    assert prompted("instruct", DOCUMENT) == "300 m"
    assert prompt_variants("prefix", DOCUMENT) == {
        "no prompt": "300 m",
        "query prompt on documents": "query: 300 m",
        "prompt twice": "passage: passage: 300 m",
        "query prompt in front of the client's": "query: passage: 300 m",
    }
    assert prompt_variants("instruct", QUERY)["prompt twice"].count("Instruct: ") == 2


def test_special_tokens_and_cuts() -> None:
    assert dict(framed([1], [5, 6], [2])) == {
        (): [1, 5, 6, 2],
        ("no EOS",): [1, 5, 6],
        ("EOS twice",): [1, 5, 6, 2, 2],
        ("no BOS",): [5, 6, 2],
        ("BOS twice",): [1, 1, 5, 6, 2],
        ("no special tokens",): [5, 6],
    }
    assert dict(cut([1], [5, 6, 7, 8], [2], 4)) == {
        (): [1, 5, 6, 2],
        ("EOS cut off",): [1, 5, 6, 7],
        ("beginning cut off",): [1, 7, 8, 2],
        ("not cut",): [1, 5, 6, 7, 8, 2],
    }


def test_some_twenty_texts_with_names_of_their_own() -> None:
    texts = [*COMPARED, *BATCHED, *ODD, long_probe(512)]
    assert len({probe.name for probe in texts}) == len(texts) == 16
    assert len(words(12).split()) == 12 and all(len(tail.split()) == 16 for tail in TAILS)


NORMAL = np.random.default_rng(0).standard_normal((4, 256)) / 16


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        (NORMAL, "float32"),
        (NORMAL.astype(np.float32), "float32"),
        (NORMAL.astype(np.float16), "float16"),
        ((NORMAL.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32), "bfloat16"),
        (np.round(NORMAL, 6), "float32"),
        (np.round(NORMAL, 4), "float32 with 4 decimal digits"),
        (np.round(NORMAL, 3), "3 decimal digits"),
        (np.round(NORMAL, 1), "1 decimal digits"),
        (np.round(NORMAL * 100 * 16, 2), "float32 with 2 decimal digits"),
        (np.round(NORMAL * 437) / 437, "8-bit integers, scaled"),
        (np.zeros((2, 4)), "bfloat16"),
    ],
)
def test_precision(numbers: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", kind: str) -> None:
    assert precision(numbers.astype(np.float64)) == kind


@pytest.mark.parametrize("limit", [40, 64, 128, 200, 512])
def test_a_limit_is_found(limit: int) -> None:
    low, high = _bisect(lambda count: count + 10 < limit, 0, 960)
    assert low < limit - 10 <= high and high - low <= 8
    assert _usual_limit(low, high) == (str(limit) if limit in (64, 128, 512) else f"{low} to {high + 16}")


def test_distance_keeps_small_values() -> None:
    one = np.array([[3.0, 4.0]])
    assert distance(one, one * 7) == 0
    assert distance(one, one + np.array([[1e-7, 0.0]])) == pytest.approx(1.28e-16, rel=0.01)
    assert distance(np.zeros((1, 2)), one) == 0.5


def test_lines_of_the_report() -> None:
    assert str(right("order", "kept")) == "right   order               kept"
    assert str(wrong("order", "reversed", "keep it")).splitlines()[1].strip() == "→ keep it"
    assert str(unknown("order", "no batch")).startswith("unknown order ")


def expected() -> Expected:
    facts = Facts.of(get("e5-small"))
    vector = np.array([0.6, 0.8], np.float32)
    texts = {p.name: ExpectedText(p, 5.0, 7, {(): vector, BOTH: -vector}) for p in probes(facts)}
    return Expected(facts, "the merged weights of e5-small, float32", "float32", texts)


def test_fixtures_come_back(tmp_path: Path) -> None:
    file = tmp_path / "vectors.json"
    fixtures.write(expected(), file)
    read = fixtures.read(file)
    assert read.facts == expected().facts and read.origin == "vectors.json: the merged weights of e5-small, float32"
    assert read.texts.keys() == expected().texts.keys()
    text = read.texts["query 1"]
    assert (text.norm, text.tokens, text.probe) == (5.0, 7, COMPARED[2])
    np.testing.assert_allclose(text.vectors[BOTH], [-0.6, -0.8], atol=3e-4)
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{", "", 1), "is not JSON"),
        (("check, 1", "check, 0", 1), "no fixtures of this version"),
        (("Eiffel", "Other", 1), "its text 'query 1' is another one"),
        (('"": "', '"no EOS": "', 1), "has no right vector"),
        (('"emoji"', '"smiley"', 1), "is broken"),
        (('"": "', '"": "!', 1), "is broken"),
        (('"norm": 5.0', '"norm": null', 1), "is broken"),
        (('"pooling"', '"pool"', 1), "is broken"),
    ],
)
def test_broken_fixtures_are_refused(change: tuple[str, str, int], message: str, tmp_path: Path) -> None:
    file = tmp_path / "vectors.json"
    fixtures.write(expected(), file)
    content = file.read_text("utf-8")
    assert change[0] in content
    file.write_text(content.replace(*change), "utf-8")
    with pytest.raises(fixtures.FixturesError, match=rf"{message}.*record it again with --record"):
        fixtures.read(file)


def test_fixtures_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(fixtures.FixturesError, match=r"cannot be read \(No such file"):
        fixtures.read(tmp_path / "none.json")
    with pytest.raises(fixtures.FixturesError, match=r"cannot be written \(No such file"):
        fixtures.write(expected(), tmp_path / "none" / "vectors.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(fixtures.FixturesError, match="cannot be written"):
        fixtures.write(expected(), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_answers_that_are_refusals() -> None:
    failed = b'{"status": "failed", "error": "Prediction failed: InputError: the request has 3 texts"}'
    answer = prediction_answer(Reply(200, {}, failed), 1)
    assert answer.refused and answer.error == "the request has 3 texts"
    answer = prediction_answer(Reply(201, {}, b'{"status": "failed", "error": "CUDA error"}'), 1)
    assert not answer.refused and answer.error == "CUDA error"
    answer = openai_answer(Reply(400, {}, b'{"error": {"message": "empty"}}'), 1)
    assert answer.refused and answer.error == "empty"
    assert not tei_answer(Reply(500, {}, b"oops"), 1).refused
    assert cog_body(["a"], "document", "task", True)["input"] == {
        "documents": ["a"],
        "normalize": True,
        "encoding_format": "base64",
    }
