"""A file job in one process: units and pieces, the queue, the time limit, cancellation."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from e5 import Embedder
from e5.corpus import plan as plans
from e5.corpus.parts import to_vectors
from e5.corpus.plan import UnitSize
from e5.errors import InputError, OverloadError
from e5.limits import Limits
from e5.serving import files
from e5.serving.batcher import Batcher
from e5.serving.files import FileJob, FileResult
from e5.serving.request import FileRequest
from e5.tokens import Tokens
from tests.reference import relative_l2

TEXTS = [f"text {index} " + "word " * (index * 7 % 50) for index in range(200)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five units of 40 rows, in pieces of a few texts."""
    monkeypatch.setattr(plans, "unit_size", lambda *_: UnitSize(10**9, 40))
    monkeypatch.setattr(files, "PIECE_BATCHES", 0.05)


def request_for(path: Path, **changes: Any) -> FileRequest:
    values: dict[str, Any] = {"task": "", "normalize": False, "encoding_format": "float", "long_texts": "truncate"}
    return FileRequest.from_inputs(Limits(), path, **(values | changes))


def job(
    library: Embedder,
    path: Path,
    limits: Limits | None = None,
    queued_tokens: int = 10**6,
    meanwhile: Callable[[Batcher, FileJob], Any] | None = None,
    **changes: Any,
) -> tuple[FileResult, list[str]]:
    """Run a job, and `meanwhile` something else."""
    folder = path.with_name("job")
    folder.mkdir()
    lines: list[str] = []

    async def run() -> FileResult:
        batcher = await Batcher.start(lambda: library, queued_tokens)
        one = FileJob(batcher, limits or Limits(), request_for(path, **changes), folder, lines.append)
        other = asyncio.create_task(meanwhile(batcher, one)) if meanwhile else None
        result = await one.run()
        if other:
            await other
        return result

    return asyncio.run(run()), lines


def test_units_come_in_order_with_the_library_s_vectors(library: Embedder, source: Path) -> None:
    result, lines = job(library, source)
    table = pq.read_table(result.path)
    assert table.column("row").to_pylist() == list(range(200))
    assert relative_l2(to_vectors(table, "float32"), library.embed_documents(TEXTS)) < 1e-5
    assert pq.ParquetFile(result.path).num_row_groups == 5
    assert (result.texts, result.tokens) == (200, library.tokenize([], TEXTS, "").total)
    assert lines[-1].startswith("5 of 5 units, 200 texts, ")
    assert [path.name for path in result.path.parent.iterdir()] == ["vectors.parquet"]
    assert source.exists()


def test_averages_of_windows_are_those_of_the_library(library: Embedder, tmp_path: Path) -> None:
    long = ["word " * 9000, "short", "text " * 5000]
    (tmp_path / "long").write_text("\n".join(long))
    result, _ = job(library, tmp_path / "long", long_texts="average")
    table = pq.read_table(result.path)
    assert relative_l2(to_vectors(table, "float32"), library.embed_documents(long, long_texts="average")) < 1e-5
    assert not any(table.column("truncated").to_pylist())


def test_time_limit_names_the_rows_that_fit(library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of five units takes 10 s: all take about 50 s, so in 25 s about half of the rows fit."""
    seconds = iter([100.0, 110.0, *[110.0] * 100])
    monkeypatch.setattr("e5.serving.files.time.perf_counter", lambda: next(seconds))
    with pytest.raises(InputError, match="would take about 1 minutes, more than E5_MAX_FILE_SECONDS=25") as caught:
        job(library, source, Limits(file_seconds=25))
    rows = int(str(caught.value).split("about ")[2].split(" of its 200 rows fit")[0])
    characters = [len(text) for text in TEXTS]
    assert rows == int(200 * 25 / (10 * sum(characters) / sum(characters[:40])))


def test_a_full_queue_delays_a_job_and_does_not_fail_it(
    library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests hold the queue; the job's pieces wait for room."""
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.01)
    refused = 0
    embed = Batcher.embed

    async def counted(self: Batcher, tokens: Any) -> Any:
        nonlocal refused
        try:
            return await embed(self, tokens)
        except OverloadError:
            refused += 1
            raise

    monkeypatch.setattr(Batcher, "embed", counted)

    async def others(batcher: Batcher, _: FileJob) -> None:
        for _turn in range(3):
            await embed(batcher, library.tokenize([], ["other " * 3000] * 3, ""))

    result, _ = job(library, source, queued_tokens=9_100, meanwhile=others)
    assert refused > 0
    rows = to_vectors(pq.read_table(result.path), "float32")
    assert relative_l2(rows, library.embed_documents(TEXTS)) < 1e-5


def test_infinite_vector_fails_the_job(library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average = Tokens.average

    def broken(self: Any, vectors: Any) -> Any:
        vectors = average(self, vectors)
        vectors[7] = np.nan
        return vectors

    monkeypatch.setattr(Tokens, "average", broken)
    with pytest.raises(FloatingPointError, match="text 8"):
        job(library, source)


def test_limit_of_bytes_counts_the_vectors_of_the_format(library: Embedder, source: Path) -> None:
    limits = Limits(file_bytes=199 * 256 * 2)
    with pytest.raises(InputError, match="E5_MAX_FILE_BYTES=101,888: 199 rows fit; pass several files, or encoding"):
        job(library, source, limits, encoding_format="float16")
    source.with_name("job").joinpath("file.jsonl").unlink()
    source.with_name("job").rmdir()
    assert job(library, source, limits, encoding_format="int8")[0].texts == 200
