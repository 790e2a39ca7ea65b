"""The benchmark of corpora runs, its programs agree, and its figures are consistent. No test depends on speed."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.corpora import comparison, long_run, main, overhead, programs
from benchmarks.corpora.programs import TreeMemory

Json = dict[str, Any]
ROUNDING = 2e-5
"""The JSON line has six significant digits."""


def run(*arguments: str) -> tuple[int, Json, str]:
    """Exit status, JSON line and card."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main.main(["--quick", *arguments])
    card, _, line = output.getvalue().removesuffix("\n").rpartition("\n")
    return status, json.loads(line), card


@pytest.mark.timeout(600)  # three programs import transformers, in six processes: minutes on a busy machine
def test_all_programs_run_and_agree() -> None:
    status, result, card = run("--only", "programs")
    measured = result["programs"]
    rows = {row["program"]: row for row in measured["programs"]}
    assert status == 0
    assert list(rows) == [
        "corpus.py",
        "corpus.py --workers 2",
        "embed_documents, one call",
        "sentence-transformers, pool",
        "Ray Data, sentence-transformers",
    ]
    assert result["machine"]["cpu"] in card and result["machine"]["packages"]["ray"] in card
    for name, row in rows.items():
        assert any(line.startswith(f"  {name}  ") for line in card.splitlines())
        assert row["max_relative_l2"] < 1e-4 and row["min_cosine"] > 0.9999
        assert row["texts_per_second"] == pytest.approx(measured["texts"] / row["median_seconds"], rel=ROUNDING)
        assert 0 < row["peak_own_bytes"] < row["peak_resident_bytes"]
    ratios = {(row["of"], row["to"]): row["whole"] for row in measured["ratios"]}
    assert list(ratios) == list(comparison.PAIRS)
    for (of, to), ratio in ratios.items():
        speeds = rows[of]["texts_per_second"], rows[to]["texts_per_second"]
        assert ratio == pytest.approx(speeds[0] / speeds[1], rel=ROUNDING)
        assert f"  {of} / {to}  " in card
    tried = measured["rival_batches_cpu_seconds"]
    assert list(tried) == ["1", "8", "32"] and measured["rival_batch"] == int(min(tried, key=tried.__getitem__))


def test_speed_with_and_without_start_by_hand() -> None:
    found = comparison.speed(104, 4, [12, 11, 30], [2, 3, 1])
    assert found["median_seconds"] == 12 and found["start_seconds"] == 2
    assert found["texts_per_second"] == pytest.approx(104 / 12)
    assert found["texts_per_second_without_start"] == 100 / 10
    assert comparison.speed(104, 4, [12], [])["texts_per_second_without_start"] is None
    assert comparison.speed(104, 4, [2], [3])["texts_per_second_without_start"] is None


def test_overhead_compares_a_run_of_several_units() -> None:
    status, result, card = run("--only", "overhead")
    measured = result["overhead"]
    first, second = measured["ways"]
    assert status == 0 and measured["units"] == measured["files"] == 8
    assert measured["ratio"] == pytest.approx(second["median_seconds"] / first["median_seconds"], rel=ROUNDING)
    assert measured["max_relative_l2"] < 1e-5
    assert f"ratio of medians, corpus run / embed_documents: {measured['ratio']:.3f}" in card


def test_long_run_counts_rows_and_samples_memory() -> None:
    status, result, card = run("--only", "long_run", "--rows", "300")
    measured = result["long_run"]
    assert status == 0 and measured["rows"] == 300 and measured["checked"] == 300
    assert [row["share"] for row in measured["milestones"]] == [0.1, 0.5, 1.0]
    assert measured["milestones"][-1]["rows"] == 300 and measured["memory"]
    assert measured["max_relative_l2"] < 1e-5
    assert measured["rows_per_second"] == pytest.approx(300 / measured["seconds"], rel=ROUNDING)
    assert "Long run: 300 rows" in card and "\n  100%" in card


def test_differing_vectors_are_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(overhead, "agreement", lambda *_: {"max_relative_l2": float("nan"), "min_cosine": 1.0})
    assert run("--only", "overhead")[0] == 1
    assert "vectors differ: overhead" in capsys.readouterr().err


def test_memory_at_shares_of_the_rows() -> None:
    memory = [TreeMemory(second, size, 0) for second, size in ((1, 10), (2, 50), (3, 20), (4, 30), (5, 60), (6, 5))]
    rows = long_run.milestones([(2.5, 20), (4.5, 40), (5.5, 40)], memory, 6.5)
    found = [
        (row["share"], row["rows"], row["seconds"], row["resident_bytes"], row["peak_resident_bytes"]) for row in rows
    ]
    assert found == [(0.1, 20, 2.5, 50, 50), (0.5, 60, 4.5, 30, 30), (1.0, 100, 6.5, 5, 60)]
    one_file = long_run.milestones([(2.5, 100)], memory, 6.5)
    assert [row["resident_bytes"] for row in one_file] == [50, None, 5]


def test_vectors_are_ordered_by_id_and_none_may_be_missing_or_doubled(tmp_path: Path) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 2)
    pq.write_table(pa.table({"id": ["b", "c", "a"], "vector": column}), tmp_path / "x.parquet")
    assert programs.read_vectors(tmp_path, ["a", "b", "c"]).tolist() == [[4, 5], [0, 1], [2, 3]]
    assert programs.read_vectors(tmp_path, ["c"], total=3).tolist() == [[2, 3]]
    for ids in (["a", "b"], ["a", "b", "d"], ["a", "b", "c", "c"]):
        with pytest.raises(RuntimeError, match="3 rows instead of"):
            programs.read_vectors(tmp_path, ids)
