"""Runs of scripts/corpus.py: vectors equal the library's, and nothing is lost or made twice, whatever is killed."""

import json
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml  # type: ignore[import-untyped]

from e5 import DEFAULT_TASK, Embedder, catalog
from e5.corpus import lance_table, processes, report, run, search, unit
from e5.corpus import main as program
from e5.corpus import plan as plans
from e5.corpus.errors import CorpusError
from e5.corpus.identity import identify
from e5.corpus.parts import Folder, part_name, read_part, rejected_name, to_vectors
from e5.corpus.plan import Options, Plan, UnitSize
from e5.corpus.processes import Share
from e5.corpus.rows import Columns
from e5.corpus.unit import Receipt
from e5.embedder import normalize
from e5.settings import Settings
from e5.vectors import to_int8, to_ubinary
from e5_cog.repository import ROOT
from e5_cog.server import python_path
from tests.gateways import until

SCRIPT = ROOT / "scripts" / "corpus.py"
SETTINGS = {"E5_DTYPE": "float32", "E5_DEVICE": "cpu"}
WORDS = "the tower is high and a recipe for soup needs water salt time paper music rain trains"


def text_of(index: int) -> str:
    rng = random.Random(index)
    return " ".join(rng.choices(WORDS.split(), k=rng.randrange(1, 40)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 good rows, and four that cannot be embedded."""
    rows: list[Any] = [{"id": f"r{index}", "text": text_of(index)} for index in range(300)]
    rows[10:10] = [{"id": "null", "text": None}, {"id": "blank", "text": " "}, {"text": "no id"}]
    lines = [json.dumps(row) for row in rows]
    lines.insert(200, "not JSON")
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def options() -> Options:
    return Options(identify(settings()), columns=Columns(id="id"), task="")


def settings() -> Settings:
    return Settings(dtype="float32", device="cpu")


def planned(folder: Path, options: Options, source: Path, size: int = 2_000) -> tuple[Plan, Folder]:
    """A plan of small units, which the program then goes on with."""
    output = Folder(str(folder))
    return plans.settle(output, options, [str(source)], UnitSize(size, 10**6)), output


def everything(plan: Plan, folder: Folder, embedder: Embedder) -> dict[int, str]:
    return run.run(plan, folder, embedder, run.pending(plan, folder), lambda _: None)


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "run", str(source), "--out", str(out), "--id-column", "id", *more]


def environment() -> dict[str, str]:
    return os.environ | SETTINGS | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".parquet"}


@pytest.fixture
def undisturbed(tmp_path: Path, source: Path, options: Options) -> dict[str, bytes]:
    """The files of a run that nothing has disturbed, made by the program."""
    plan, _ = planned(tmp_path / "undisturbed", options, source)
    assert len(plan.units) > 10
    done = subprocess.run(
        command(source, tmp_path / "undisturbed"), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "300 vectors, 4 rows rejected" in done.stderr
    return contents(tmp_path / "undisturbed")


# ---- what is written


def test_vectors_are_the_librarys_and_every_row_is_there_once(
    tmp_path: Path, source: Path, options: Options, library: Embedder
) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    assert everything(plan, folder, library) == {}
    table = pa.concat_tables([read_part(folder, plan.id, unit) for unit in range(len(plan.units))])
    assert table.column("id").to_pylist() == [f"r{index}" for index in range(300)]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 256)
    texts = [text_of(index) for index in range(300)]
    np.testing.assert_allclose(to_vectors(table, "float32"), library.embed_documents(texts), rtol=0, atol=1e-5)
    tokens = library.tokenize([], texts, "")
    assert table.column("tokens").to_pylist() == tokens.lengths
    assert not any(table.column("truncated").to_pylist())
    rejected = [
        row
        for unit in range(len(plan.units))
        if (tmp_path / "out" / rejected_name(plan.id, unit)).is_file()
        for row in pq.read_table(tmp_path / "out" / rejected_name(plan.id, unit)).to_pylist()
    ]
    assert [row["id"] for row in rejected] == ["null", "blank", "texts.jsonl:13", "texts.jsonl:201"]
    for row, words in zip(
        rejected, ("missing or null", "only white space", "`id` is missing", "not JSON"), strict=True
    ):
        assert words in row["reason"]


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "ubinary"])
def test_smaller_vectors_are_those_of_the_api(
    tmp_path: Path, source: Path, options: Options, library: Embedder, kind: Any
) -> None:
    plan, folder = planned(tmp_path / "out", replace(options, vectors=kind, normalize=True), source, 10**6)
    everything(plan, folder, library)
    table = read_part(folder, plan.id, 0)
    vectors = normalize(library.embed_documents([text_of(index) for index in range(300)]))
    stored = table.column("vector").combine_chunks().flatten().to_numpy().reshape(300, -1)
    if kind == "ubinary":
        np.testing.assert_array_equal(stored, to_ubinary(vectors))
    elif kind == "int8":
        expected, scales = to_int8(vectors)
        assert np.abs(stored.astype(int) - expected).max() <= 1  # rounding of the last bit
        np.testing.assert_allclose(table.column("scale").to_numpy(), scales, rtol=1e-5)
        np.testing.assert_allclose(to_vectors(table, kind), vectors, rtol=0, atol=scales.max())
    else:
        np.testing.assert_allclose(stored, vectors.astype(kind), rtol=0, atol=1e-3 if kind == "float16" else 1e-6)


def test_queries_tasks_and_long_texts(tmp_path: Path, options: Options, library: Embedder) -> None:
    texts = ["how tall is the tower?", ("tower " * 5000).strip()]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts))
    options = replace(options, columns=Columns())
    for number, (changes, expected) in enumerate(
        (
            ({"side": "query", "task": DEFAULT_TASK}, library.embed_queries(texts)),
            ({"side": "query", "task": "Find towers"}, library.embed_queries(texts, task="Find towers")),
            ({"long_texts": "truncate"}, library.embed_documents(texts)),
            ({"long_texts": "average"}, library.embed_documents(texts, long_texts="average")),
            ({"long_texts": "error"}, library.embed_documents(texts[:1])),
        )
    ):
        changed: dict[str, Any] = dict(changes)
        plan, folder = planned(tmp_path / str(number), replace(options, **changed), source, 10**6)
        everything(plan, folder, library)
        table = read_part(folder, plan.id, 0)
        np.testing.assert_allclose(to_vectors(table, "float32"), expected, rtol=0, atol=1e-5)
        cut = changed.get("long_texts", "truncate") == "truncate"
        assert table.column("truncated").to_pylist() == [False, cut][: len(expected)]
    (row,) = pq.read_table(tmp_path / "4" / rejected_name(plan.id, 0)).to_pylist()
    assert row["id"] == "texts.txt:2" and "has 5,002 tokens" in row["reason"]


def test_windows_have_vectors_and_spans_of_their_own(tmp_path: Path, options: Options, library: Embedder) -> None:
    texts = ["short", " ".join(f"word{index % 97} naïve 日本" for index in range(2500)), "last"]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts))
    plan, folder = planned(tmp_path / "out", replace(options, columns=Columns(), long_texts="windows"), source, 10**6)
    everything(plan, folder, library)
    rows = read_part(folder, plan.id, 0).to_pylist()
    own = [row for row in rows if row["id"] == "texts.txt:2"]
    assert len(rows) == len(own) + 2 and len(own) > 2
    assert [(row["start"], row["end"]) for row in (rows[0], rows[-1])] == [(0, 5), (0, 4)]
    assert own[0]["start"] == 0 and own[-1]["end"] == len(texts[1])
    for before, after in pairwise(own):
        assert (
            0 <= after["start"] - before["end"] <= 1 or after["start"] == before["end"] - 1
        )  # a space, or a character
    parts_of_text = [texts[1][row["start"] : row["end"]].strip() for row in own]
    # Cut at the same places and embedded alone, a window differs by the tokens at its edges at most.
    near = normalize(library.embed_documents(parts_of_text)) @ normalize(np.array([row["vector"] for row in own])).T
    assert (np.diag(near) > 0.999).all()
    mean = np.average([row["vector"] for row in own], axis=0, weights=window_tokens(library, texts[1]))
    np.testing.assert_allclose(mean, library.embed_documents(texts[1:2], long_texts="average")[0], rtol=0, atol=1e-4)
    url = str(tmp_path / "table.lance")
    lance_table.write_table(plan, folder, url)
    stored = lance.dataset(url).to_table().column("text").to_pylist()
    assert stored == [texts[0], *(texts[1][row["start"] : row["end"]] for row in own), texts[2]]


def window_tokens(library: Embedder, text: str) -> list[int]:
    weights = library.tokenize([], [text], "", "average").weights
    assert weights is not None
    return weights[0]


# ---- what survives


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, source: Path, options: Options, undisturbed: dict[str, bytes]
) -> None:
    out, rng, kills = tmp_path / "out", random.Random(1), 0
    plan, folder = planned(out, options, source)
    while run.pending(plan, folder):
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command(source, out), env=environment(), stderr=log)
        before = len(contents(out))
        end = time.monotonic() + 60
        while process.poll() is None and len(contents(out)) < before + 2 and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills >= 3
    assert contents(out) == undisturbed
    assert report.finish(plan, folder).texts == 300
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["texts"], manifest["rejected"], len(manifest["parts"])) == (300, 4, len(plan.units))


def test_two_runs_on_one_folder_give_the_same_files(
    tmp_path: Path, source: Path, options: Options, undisturbed: dict[str, bytes]
) -> None:
    planned(tmp_path / "out", options, source)
    both = [subprocess.Popen(command(source, tmp_path / "out"), env=environment()) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert contents(tmp_path / "out") == undisturbed
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_shares_of_several_machines_add_up(
    tmp_path: Path, source: Path, options: Options, undisturbed: dict[str, bytes]
) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    for share in ("0/3", "2/3"):
        subprocess.run(command(source, tmp_path / "out", "--shard", share), env=environment(), check=True)
    assert [number % 3 for number in run.pending(plan, folder)] == [1] * len(range(1, len(plan.units), 3))
    subprocess.run(command(source, tmp_path / "out", "--shard", "1/3"), env=environment(), check=True)
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_killed_worker_is_started_again(
    tmp_path: Path, source: Path, options: Options, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    planned(out, options, source)
    process = subprocess.Popen(
        command(source, out, "--workers", "2"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    tasks = Path(f"/proc/{process.pid}/task")  # each thread has its own children
    children = until(lambda: [child for task in tasks.iterdir() for child in (task / "children").read_text().split()])
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "killed by signal 9" in errors
    assert "300 vectors" in errors
    assert contents(out) == undisturbed


def test_worker_that_is_always_killed_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    deaths = [Share(["-c", "import os; os.kill(os.getpid(), 9)"], {}, lambda: 5)]
    assert processes.run_shares(deaths, lambda _: None) == 1
    assert caplog.text.count("killed by signal 9 with 5 units to do") == processes.MAX_DEATHS
    with pytest.raises(BrokenPipeError):  # a report that fails is no success
        processes.run_shares([Share(["-c", RECEIPT], {}, lambda: 1)], broken)
    receipts: list[Receipt] = []
    assert processes.run_shares([Share(["-c", f"{RECEIPT}; raise SystemExit(7)"], {}, lambda: 1)], receipts.append) == 7
    assert receipts == [Receipt(3, 2, 1, 9)]


RECEIPT = 'print(\'{"unit": 3, "texts": 2, "rejected": 1, "tokens": 9}\')'


def broken(_: Receipt) -> None:
    raise BrokenPipeError


def test_damaged_files_are_found_and_made_again(
    tmp_path: Path, source: Path, options: Options, library: Embedder
) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    everything(plan, folder, library)
    whole = contents(tmp_path / "out")
    names = [part_name(plan.id, number) for number in range(4)]
    last = max(name for name in whole if name.startswith("rejected"))  # of none of the four units
    flipped = bytearray(whole[names[0]])
    flipped[len(flipped) // 3] ^= 1
    (tmp_path / "out" / names[0]).write_bytes(flipped)  # in a page: only the checksum shows it
    (tmp_path / "out" / names[1]).write_bytes(whole[names[1]][:-100])  # no footer
    (tmp_path / "out" / names[2]).write_bytes(whole[names[3]])  # of another unit
    (tmp_path / "out" / names[3]).unlink()
    (tmp_path / "out" / last).unlink()
    assert run.pending(plan, folder) == [1, 2, 3]
    with pytest.raises(CorpusError, match=r"1 missing and 4 damaged: start the run again"):
        report.finish(plan, folder)
    assert run.pending(plan, folder) == [0, 1, 2, 3, int(last.split("-")[1])]
    everything(plan, folder, library)
    assert contents(tmp_path / "out") == whole
    assert report.finish(plan, folder).done == len(plan.units)


def test_finish_removes_nothing_if_the_file_system_fails(
    tmp_path: Path, source: Path, options: Options, library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = planned(tmp_path / "out", options, source, 10**6)
    everything(plan, folder, library)

    def denied(name: str) -> Any:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(folder, "open", denied)
    with pytest.raises(PermissionError):
        report.finish(plan, folder)
    with pytest.raises(PermissionError):
        run.pending(plan, folder)
    monkeypatch.undo()
    assert report.finish(plan, folder).done == 1


def test_input_that_changes_during_the_run_ends_it(
    tmp_path: Path, options: Options, library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [text_of(index) for index in range(100)]}), source, row_group_size=10)
    plan, folder = planned(tmp_path / "out", replace(options, columns=Columns()), source, 10)
    pq.write_table(pa.table({"text": [text_of(index) for index in range(25)]}), source, row_group_size=10)
    with pytest.raises(CorpusError, match="has changed since the run was planned"):
        everything(plan, folder, library)
    monkeypatch.setattr(unit, "check_unchanged", lambda _: None)  # changed within a tick of the clock, say
    with pytest.raises(CorpusError, match="has changed since the run was planned"):
        everything(plan, folder, library)
    assert len(contents(tmp_path / "out")) <= 25


def test_rows_with_the_same_id_keep_their_own_texts(tmp_path: Path, options: Options, library: Embedder) -> None:
    rows = [("A", "apples on trees"), ("A", "the eiffel tower"), ("B", " "), ("B", "soup with salt")]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows))
    plan, folder = planned(tmp_path / "out", options, source)
    everything(plan, folder, library)
    hits = search.search(plan, folder, library.embed_documents(["the eiffel tower"])[0], 3)
    assert [(hits[0].id, hits[0].text), len(hits)] == [("A", "the eiffel tower"), 3]
    assert sorted(str(hit.text) for hit in hits) == ["apples on trees", "soup with salt", "the eiffel tower"]
    lance_table.write_table(plan, folder, url := str(tmp_path / "table.lance"))
    assert lance.dataset(url).to_table().column("text").to_pylist() == [rows[0][1], rows[1][1], rows[3][1]]


def test_part_of_another_plan_does_not_count(tmp_path: Path, source: Path, options: Options, library: Embedder) -> None:
    plan, folder = planned(tmp_path / "a", options, source, 10**6)
    everything(plan, folder, library)
    other, empty = planned(tmp_path / "b", replace(options, normalize=True), source, 10**6)
    assert other.id != plan.id
    (tmp_path / "b" / part_name(other.id, 0)).write_bytes((tmp_path / "a" / part_name(plan.id, 0)).read_bytes())
    assert run.pending(other, empty) == [0]


def test_changed_input_and_options_are_refused(tmp_path: Path, source: Path, options: Options) -> None:
    planned(tmp_path / "out", options, source)
    for changes, words in (
        ({"normalize": True}, "normalize=False, this run True"),
        ({"vectors": "int8"}, "vectors='float32', this run 'int8'"),
        ({"columns": Columns(id="key")}, "id column='id', this run 'key'"),
        ({"identity": replace(options.identity, dtype="bfloat16")}, "dtype='float32', this run 'bfloat16'"),
        ({"identity": replace(options.identity, weights="0")}, "weights='"),
    ):
        changed: dict[str, Any] = dict(changes)
        with pytest.raises(CorpusError, match=words):
            planned(tmp_path / "out", replace(options, **changed), source)
    time.sleep(0.01)
    source.write_bytes(source.read_bytes().replace(b"tower", b"house"))
    with pytest.raises(CorpusError, match=r"texts.jsonl has changed since the run was planned: use another --out"):
        planned(tmp_path / "out", options, source)
    (tmp_path / "more.jsonl").write_text('{"text": "x"}')
    with pytest.raises(CorpusError, match=r"more.jsonl is not part of the folder's plan"):
        planned(tmp_path / "out", options, tmp_path / "more.jsonl")
    path = tmp_path / "out" / "plan.json"
    path.write_text(path.read_text().replace('"normalize": false', '"normalize": true'))
    with pytest.raises(CorpusError, match=r"plan.json has been changed"):
        planned(tmp_path / "out", options, source)


def test_unit_that_fails_is_tried_three_times_and_the_rest_is_complete(
    tmp_path: Path, source: Path, options: Options, library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    compute, tries = unit.compute, {2: 0, 5: 0}

    def failing(prepared: unit.Prepared, plan: Plan, embedder: Embedder) -> Any:
        if prepared.unit in tries:
            tries[prepared.unit] += 1
            if prepared.unit == 2 or tries[5] < 3:
                raise FloatingPointError("NaN")
        return compute(prepared, plan, embedder)

    monkeypatch.setattr(unit, "compute", failing)
    assert everything(plan, folder, library) == {2: "FloatingPointError: NaN"}
    assert tries == {2: 3, 5: 3}
    assert run.pending(plan, folder) == [2]


def test_full_disk_ends_the_run_with_a_reason_and_nothing_half_written(
    tmp_path: Path, source: Path, options: Options
) -> None:
    """A limit of the size of files stands in for the full disk."""
    planned(tmp_path / "out", options, source, 20_000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        command(source, tmp_path / "out"),
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode == 1
    assert "start the same command again" in done.stderr and "Traceback" not in done.stderr
    left = {path.name.partition("-")[0] for path in (tmp_path / "out").iterdir()}
    assert left == {"plan.json", "rejected"}  # no part, nothing temporary


# ---- the program


def test_plan_status_finish_and_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["The Eiffel tower is 300 m high.", "A recipe for soup.", "Trains are late when it rains."]
    source, out = tmp_path / "texts.txt", str(tmp_path / "out")
    source.write_text("\n".join(texts))
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    assert program.main(["plan", str(source), "--out", out]) == 0
    assert "1 files, 3 rows, 1 units" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert program.main(["status", out]) == 1
    assert "has no plan.json" in capsys.readouterr().err
    assert program.main(["run", str(source), "--out", out, "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["unit"], receipt["texts"], receipt["rejected"]) == (0, 3, 0)
    assert program.main(["status", out]) == 0
    assert program.main(["finish", out]) == 0
    assert "1 of 1 units done, 3 vectors" in capsys.readouterr().out
    assert program.main(["search", out, "how tall is the tower?", "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith(f"texts.txt:1  {texts[0]}")
    table = str(tmp_path / "table.lance")
    assert program.main(["finish", out, "--lance", table]) == 0
    assert "table.lance: 3 rows" in capsys.readouterr().out
    assert program.main(["search", out, "how tall is the tower?", "-k", "1", "--lance", table]) == 0
    assert texts[0] in capsys.readouterr().out
    assert program.main(["run", "--out", out, "--workers", "0", "x"]) == 1
    assert "--workers 0: pass 1 or more" in capsys.readouterr().err
    (tmp_path / "numbers.jsonl").write_text('{"text": 1}')
    assert program.main(["run", str(tmp_path / "numbers.jsonl"), "--out", str(tmp_path / "none")]) == 1
    assert "no row could be embedded" in capsys.readouterr().err
    long = ["--side", "query", "--task", "find " * 4000]
    assert program.main(["run", str(source), "--out", str(tmp_path / "long"), *long]) == 2
    assert "`task` takes" in capsys.readouterr().err
    source.unlink()
    assert program.main(["search", out, "soup", "-k", "1"]) == 0
    assert "texts.txt:2" in capsys.readouterr().out
    assert program.main(["run", str(source), "--out", out]) == 1
    assert "has no files of texts" in capsys.readouterr().err
    assert program.main(["run", "x", "--out", out, "--shard", "3/3"]) == 1
    assert "--shard 3/3: pass I/N" in capsys.readouterr().err
    assert program.main(["run", "x", "--out", out, "--model", "e6"]) == 2


def test_search_is_exact(tmp_path: Path, source: Path, options: Options, library: Embedder) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    with pytest.raises(CorpusError, match="has no vectors: 0 of"):
        search.search(plan, folder, np.ones(256, np.float32), 3)
    everything(plan, folder, library)
    query = normalize(library.embed_queries(["soup with salt"]))[0]
    hits = search.search(plan, folder, query, 20)
    documents = normalize(library.embed_documents([text_of(index) for index in range(300)]))
    values = 100 * documents @ query
    best = np.argsort(-values, kind="stable")[:20]
    np.testing.assert_allclose([hit.score for hit in hits], values[best], rtol=0, atol=1e-3)
    assert {hit.id for hit in hits} == {f"r{index}" for index in best}
    assert all(hit.text == text_of(int(hit.id[1:])) for hit in hits)


def test_lance_table_has_the_rows_their_texts_and_the_same_order(
    tmp_path: Path, source: Path, options: Options, library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    everything(plan, folder, library)
    url = str(tmp_path / "table.lance")
    assert lance_table.write_table(plan, folder, url) == 300
    rows = lance.dataset(url).to_table().to_pylist()
    assert [(row["id"], row["text"]) for row in rows] == [(f"r{index}", text_of(index)) for index in range(300)]
    version = lance.dataset(url).version
    assert lance_table.write_table(plan, folder, url) == 300  # again: nothing happens
    assert lance.dataset(url).version == version
    query = library.embed_queries(["soup with salt"])[0]
    exact = search.search(plan, folder, query, 10)
    found = lance_table.nearest(plan, url, query, 10)
    assert [hit.id for hit in found] == [hit.id for hit in exact]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in exact], rtol=0, atol=1e-2)
    monkeypatch.setattr(lance_table, "MIN_INDEXED", 300)
    lance_table.write_table(plan, folder, url)
    assert [index["type"] for index in lance.dataset(url).list_indices()] == ["IVF_PQ"]
    indexed = {hit.id for hit in lance_table.nearest(plan, url, query, 10)}
    assert len(indexed & {hit.id for hit in exact}) >= 5  # approximate
    other, elsewhere = planned(tmp_path / "other", replace(options, normalize=True), source)
    everything(other, elsewhere, library)
    with pytest.raises(CorpusError, match="is a table of something else"):
        lance_table.write_table(other, elsewhere, url)
    with pytest.raises(CorpusError, match="is a table of something else"):
        lance_table.nearest(other, url, query, 10)
    with pytest.raises(CorpusError, match="needs float vectors"):
        lance_table.write_table(replace(plan, options=replace(options, vectors="int8")), folder, url)
    with pytest.raises(CorpusError, match="is not a Lance table"):
        lance_table.nearest(plan, str(tmp_path / "none.lance"), query, 10)


KILLER = """
import os, signal, sys
from e5.corpus import unit
from e5.corpus.main import main

prepare = unit.prepare

def deadly(plan, number, embedder):
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare(plan, number, embedder)

unit.prepare = deadly
sys.exit(main(sys.argv[1:]))
"""


def test_unit_that_kills_its_process_does_not_hold_up_the_others(
    tmp_path: Path, options: Options, source: Path
) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    assert len(plan.units) > 5
    program = tmp_path / "killer.py"
    program.write_text(KILLER)
    arguments = ["run", str(source), "--out", str(tmp_path / "out"), "--id-column", "id"]
    share = Share(
        [str(program), *arguments, "--shard", "0/1", "--json"],
        {**SETTINGS, "PYTHONPATH": str(ROOT)},
        lambda: len(run.pending(plan, folder)),
    )
    assert processes.run_shares([share], lambda _: None) == 1
    assert run.pending(plan, folder) == [0]


def test_scripts_of_the_documentation_are_valid() -> None:
    blocks = re.findall(r"^```(bash|yaml)\n(.*?)^```$", (ROOT / "docs" / "corpora.md").read_text(), re.M | re.S)
    commands = []
    for kind, block in blocks:
        if kind == "bash":
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)
            line = block.replace("\\\n", " ").split("scripts/corpus.py ")[1].splitlines()[0]
            commands.append(
                shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "3").replace("$SLURM_ARRAY_TASK_COUNT", "16"))
            )
        else:
            (container,) = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"]
            words = [*container["command"], *container["args"]]
            commands.append([word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in words[2:]])
    assert len(commands) == 3
    parsed = [program.argument_parser().parse_args(command) for command in commands]
    assert [each.shard for each in parsed] == ["3/16", "3/16", None] and parsed[2].ray == "auto"
    assert all(each.vectors == "float16" and each.id_column == "id" for each in parsed)


def test_units_take_about_a_minute() -> None:
    flagship, tiny = catalog.get("e5-mistral-7b-instruct"), catalog.get("e5-mistral-tiny")
    # 48,500 tokens/s are predicted for an H200 (docs/performance-notes.md); 60 s of them are 2.9 M tokens.
    assert 1.5e6 < plans.unit_size(flagship, "cuda").bytes / plans.BYTES_PER_TOKEN < 3.0e6
    assert plans.unit_size(flagship, "cpu").bytes == plans.BYTES_PER_TOKEN * plans.MIN_UNIT_TOKENS
    assert plans.unit_size(tiny, "cpu").bytes / plans.BYTES_PER_TOKEN > 5e5


def test_vectors_of_a_unit_have_a_quarter_of_a_gigabyte_at_most() -> None:
    for name in catalog.names():
        model = catalog.get(name)
        assert plans.unit_size(model, "cuda").records * model.dimensions * 4 <= 2**28
