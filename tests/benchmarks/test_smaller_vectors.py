"""The numbers of docs/smaller-vectors.md: the metric by hand, the second pass, and one run on the embedded model."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import smaller_vectors
from benchmarks.quality import Candidate

ROWS = [
    Candidate("how high?", True, "It is 300 m high."),
    Candidate("how high?", False, "A recipe for soup."),
    Candidate("how old?", True, "It is 300 m high."),
    Candidate("no answer?", False, "The weather was fine."),
]


def test_questions_without_an_answer_are_left_out_and_sentences_are_distinct() -> None:
    questions, sentences, answers = smaller_vectors.collect(ROWS)
    assert questions == ["how high?", "how old?"]
    assert sentences == ["It is 300 m high.", "A recipe for soup.", "The weather was fine."]
    assert answers == [{0}, {0}]


def test_ndcg_by_hand() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]], dtype=np.float32)
    first = 1 / math.log2(3)  # the only answer is second
    second = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))  # the answers are first and third
    assert smaller_vectors.ndcg(scores, [{2}, {0, 1}]) == pytest.approx(50 * (first + second))


def test_second_pass_orders_only_the_candidates_of_the_first() -> None:
    first = np.array([[3, 2, 1, 0]], dtype=np.float32)
    second = np.array([[1, 2, 3, 4]], dtype=np.float32)
    assert smaller_vectors.rescored(first, second, 2).tolist() == [[1, 2, -np.inf, -np.inf]]


def test_signs_need_the_mean_subtracted_when_vectors_lie_in_a_narrow_cone() -> None:
    """One large common component and small differences: all signs are equal, and only the differences rank."""
    documents = np.random.default_rng(0).standard_normal((50, 64), dtype=np.float32) + 10
    queries, answers = documents[:10], [{index} for index in range(10)]
    mean = documents.mean(axis=0)
    plain = smaller_vectors.search(queries, documents)
    centred = smaller_vectors.search(queries - mean, documents - mean)
    assert smaller_vectors.ndcg(plain["float32"], answers) == 100
    assert smaller_vectors.ndcg(plain["ubinary"], answers) < 50
    assert smaller_vectors.ndcg(centred["ubinary"], answers) == 100


def test_prints_every_format_and_the_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["qtext,label,atext", *(f"{row.question},{int(row.is_answer)},{row.sentence}" for row in ROWS)]
    (tmp_path / "trecqa-dev.csv").write_text("\n".join(lines))
    smaller_vectors.main(["--data", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "e5-mistral-tiny, trecqa-dev.csv: 2 questions, 3 sentences" in printed
    sizes = {line[:27].strip(): line[27:].split() for line in printed.splitlines()[2:11]}
    assert sizes["float32"] == ["1,536", "4,096", "16,384"]
    assert sizes["int8 and scale"] == ["388", "1,028", "4,100"]
    assert sizes["ubinary"] == ["48", "128", "512"]
    rows = {line[:42].strip(): line[42:].split() for line in printed.splitlines()[-7:]}
    assert {"float32", "float16", "int8", "ubinary", "ubinary, best 100 again by int8"} <= rows.keys()
    assert rows["float32"] == rows["float16"]
