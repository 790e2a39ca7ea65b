"""The comparison with other packages, with this package's own engines: the tests install no other package."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import shared_checkpoint
from benchmarks.peers import comparison, engines
from benchmarks.peers.process import EngineProcess
from e5 import catalog
from e5.weights.locate import locate


def test_engines_answer_from_their_own_processes(tmp_path: Path) -> None:
    model = catalog.get(catalog.EMBEDDED)
    shared_checkpoint.build(model, locate(model), torch.device("cpu"), tmp_path / engines.CHECKPOINT)
    texts = comparison.Texts(["It is 300 m high.", "A recipe for soup."], ["how tall is it?"], tokens=14)
    ours = {engine: sys.executable for engine in engines.ALL if engine.name == engines.OURS}
    result = comparison.measure(ours, model.name, texts, tmp_path, rounds=1, starts=1)
    rows = result["engines"]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert rows[0]["min_cosine"] == pytest.approx(1, abs=1e-12) and 0.99 < rows[1]["min_cosine"] < 1 - 1e-7
    for row in rows:
        assert row["documents_per_second"] == pytest.approx(2 / row["seconds"][0])
        assert 0 < row["query_p50_milliseconds"] <= row["query_p90_milliseconds"] < row["setup_seconds"] * 1e3
        assert f"this package  {row['dtype']}" in comparison.card(result)


def test_a_failed_engine_s_log_is_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"status 3; .*\ncannot load"):
        EngineProcess(
            [sys.executable, "-c", "import sys; print('cannot load', file=sys.stderr); sys.exit(3)"],
            tmp_path / "log",
            {},
        )
