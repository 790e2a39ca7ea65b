"""A file job in one process: units and pieces, the queue, the time limit, cancellation."""

import asyncio
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5 import Embedder
from e5.corpus import plan as plans
from e5.corpus import unit
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


class Clock:
    """Time for files.py alone, which stands still but for what a test adds."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(files, "time", clock)
    return clock


def tables_take(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: list[float]) -> None:
    def slow(*arguments: Any) -> Any:
        clock.now += seconds.pop(0)
        return unit.table(*arguments)

    monkeypatch.setattr(files, "steps", SimpleNamespace(prepare=unit.prepare, table=slow))


def test_time_limit_names_the_rows_that_fit(
    library: Embedder, source: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of five units takes 10 s: all take about 50 s, so in 25 s about half of the rows fit."""
    tables_take(monkeypatch, clock, [10.0] * 5)
    with pytest.raises(InputError, match=r"would take about 5\d s, more than E5_MAX_FILE_SECONDS=25") as caught:
        job(library, source, Limits(file_seconds=25))
    rows = int(str(caught.value).split("about ")[2].split(" of its 200 rows fit")[0])
    characters = [len(text) for text in TEXTS]
    assert rows == int(200 * 25 / (10 * sum(characters) / sum(characters[:40])))


def test_time_limit_is_checked_again_but_not_at_the_end(
    library: Embedder, source: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables_take(monkeypatch, clock, [1.0, 1.0, 50.0, 1.0, 1.0])
    with pytest.raises(InputError, match="E5_MAX_FILE_SECONDS=25"):
        job(library, source, Limits(file_seconds=25))
    source.with_name("job").rename(source.with_name("first"))
    tables_take(monkeypatch, clock, [1.0, 1.0, 1.0, 1.0, 100.0])
    assert job(library, source, Limits(file_seconds=25))[0].texts == 200


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


def test_infinite_vector_names_the_unit_s_rows(
    library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model gives NaN for the text of row 98, which is in the third unit."""
    broken = library.tokenize([], [TEXTS[97]], "").ids[0].tobytes()
    launch = Embedder.launch

    def launched(self: Embedder, ids: Any) -> Any:
        result = launch(self, ids)
        vectors = result.vectors().copy()
        vectors[[each.tobytes() == broken for each in ids]] = np.nan
        monkeypatch.setattr(result, "vectors", lambda: vectors)
        return result

    monkeypatch.setattr(Embedder, "launch", launched)
    with pytest.raises(FloatingPointError, match="for one of the rows 81 to 120 of `file`: its dtype"):
        job(library, source)


def test_numbers_beyond_float16_are_refused(library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average = Tokens.average
    monkeypatch.setattr(Tokens, "average", lambda self, vectors: 1e5 * average(self, vectors))
    with pytest.raises(InputError, match="float16 ends at"):
        job(library, source, encoding_format="float16")


def test_job_canceled_while_it_writes_leaves_the_process_alive(
    library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pq.ParquetWriter.write_table
    writing, closed_while_writing = [0], []

    def slow(self: Any, *arguments: Any) -> None:
        writing[0] += 1
        time.sleep(0.2)
        write(self, *arguments)
        writing[0] -= 1

    close = pq.ParquetWriter.close

    def checked_close(self: Any) -> None:
        closed_while_writing.append(writing[0])
        close(self)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", slow)
    monkeypatch.setattr(pq.ParquetWriter, "close", checked_close)

    async def run() -> None:
        batcher = await Batcher.start(lambda: library, 10**6)
        folder = source.with_name("job")
        folder.mkdir()
        task = asyncio.create_task(FileJob(batcher, Limits(), request_for(source), folder, lambda _: None).run())
        while not writing[0]:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    gc.collect()
    assert not any(closed_while_writing)


def test_kilobyte_that_repeats_a_long_text_becomes_many_units(
    library: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet stores the text once, so its metadata says that the file is small."""
    monkeypatch.setattr(plans, "unit_size", lambda *_: UnitSize(2_000_000, 10**9))
    table = pa.table({"text": pa.array(["word " * 60_000] * 40)})
    pq.write_table(table, tmp_path / "repeated.parquet")
    assert (tmp_path / "repeated.parquet").stat().st_size < 30_000
    prepared: list[int] = []

    def counted(*arguments: Any) -> Any:
        result = unit.prepare(*arguments)
        prepared.append(len(result.ids))
        return result

    monkeypatch.setattr(files, "steps", SimpleNamespace(prepare=counted, table=unit.table))
    result, _ = job(library, tmp_path / "repeated.parquet")
    assert prepared == [7, 7, 7, 7, 7, 5]
    assert pq.read_table(result.path).column("row").to_pylist() == list(range(40))


def test_damaged_page_is_refused(library: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(200) + content[260:])
    with pytest.raises(InputError, match="`file` is damaged"):
        job(library, path)


def test_long_id_is_refused(library: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a", "x" * 1001], "text": TEXTS[:2]}), path)
    with pytest.raises(InputError, match="`file`, row 2: `id` has 1,001 characters"):
        job(library, path)


def test_too_long_row_is_refused_before_anything_is_computed(
    library: Embedder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with source.open("a") as file:
        file.write(json.dumps({"text": "word " * 5000}) + "\n")
    monkeypatch.setattr(Batcher, "embed", None)
    with pytest.raises(InputError, match="`file`, row 201: `text` has 5,003 tokens, more than the 4,096"):
        job(library, source, long_texts="error")


def test_limit_of_bytes_counts_the_vectors_of_the_format(library: Embedder, source: Path) -> None:
    limits = Limits(file_bytes=199 * 256 * 2)
    with pytest.raises(
        InputError,
        match="has about 200 rows, more than the 199 whose float16 vectors fit into E5_MAX_FILE_BYTES=101,888: pass",
    ):
        job(library, source, limits, encoding_format="float16")
    source.with_name("job").joinpath("file.jsonl").unlink()
    source.with_name("job").rmdir()
    assert job(library, source, limits, encoding_format="int8")[0].texts == 200
