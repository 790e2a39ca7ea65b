"""One long run of scripts/corpus.py on short rows: its speed, the size of its output, and whether its memory grows."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.corpora import programs
from benchmarks.corpora.programs import TreeMemory
from benchmarks.report import Json, cells, log, table
from benchmarks.texts import RandomTexts
from benchmarks.throughput import agreement
from e5.catalog import Model

WORDS = 3, 12
"""Of a row: shortest and longest."""
SHARES = (0.1, 0.5, 1.0)
CHECKED = 200
"""Rows, evenly spread, whose vectors are compared with those of one call of `embed_documents`."""
MEMORY_INTERVAL = 1.0
Written = tuple[float, int]
"""When a file was complete, in seconds after the start, and its rows."""


def measure(model: Model, checkpoint: Path, texts: RandomTexts, count: int, folder: Path) -> Json:
    """`folder`: an empty one for input, output and log. Raises RuntimeError if the run fails or rows are missing."""
    source, out = folder / "rows.jsonl", folder / "vectors"
    log(f"long run: writing {count:,} rows …")
    checked = _write_rows(texts, count, source)
    log("long run: embedding them …")
    command = ["scripts/corpus.py", "run", str(source), "--out", str(out), "--id-column", "id"]
    run = programs.run(command, programs.environment(model.name, checkpoint), folder / "log", MEMORY_INTERVAL)
    files = {path: pq.read_metadata(path).num_rows for path in out.glob("*.parquet")}
    written = sorted((path.stat().st_mtime - run.started, rows) for path, rows in files.items())
    vectors = programs.read_vectors(out, list(checked), count)
    return {
        "rows": count,
        "input_bytes": source.stat().st_size,
        "seconds": run.seconds,
        "rows_per_second": count / run.seconds,
        "files": len(files),
        "output_bytes": sum(path.stat().st_size for path in files),
        "first_file_seconds": written[0][0],
        "milestones": milestones(written, run.memory, run.seconds),
        "memory": [[each.seconds, each.resident] for each in run.memory],
        "checked": len(checked),
        **agreement(vectors, texts.embedder.embed_documents(list(checked.values()), progress=False)),
    }


def _write_rows(texts: RandomTexts, count: int, to: Path) -> dict[str, str]:
    """Write JSONL, and return the rows to check: id → text."""
    checked = {}
    with to.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts.rows(count, *WORDS)):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
            if number % max(1, count // CHECKED) == 0:
                checked[str(number)] = text
    return checked


def milestones(written: Sequence[Written], memory: Sequence[TreeMemory], seconds: float) -> list[Json]:
    """For each share of the rows: when they were written, memory then, and its peak since the milestone before.

    The last one is the end of the program. Memory is None where no sample lies in between.
    """
    totals = list(itertools.accumulate(rows for _, rows in written))
    result: list[Json] = []
    before = 0.0
    for share in SHARES:
        reached = next(index for index, rows in enumerate(totals) if rows >= share * totals[-1])
        until = seconds if share == 1 else written[reached][0]
        between = [each.resident for each in memory if before < each.seconds <= until]
        result.append(
            {
                "share": share,
                "rows": totals[reached],
                "seconds": until,
                "resident_bytes": between[-1] if between else None,
                "peak_resident_bytes": max(between) if between else None,
            }
        )
        before = until
    return result


def card(result: Json) -> str:
    rows = [
        row
        | {"now": _megabytes(row["resident_bytes"]), "peak": _megabytes(row["peak_resident_bytes"])}
        | {"speed": row["rows"] / row["seconds"]}
        for row in result["milestones"]
    ]
    head = ["", "rows written", "after s", "rows/s so far", "memory MB", "peak MB since the line above"]
    return "\n".join(
        [
            f"Long run: {result['rows']:,} rows of {WORDS[0]} to {WORDS[1]} words ({result['input_bytes'] / 1e6:,.1f} "
            f"MB), float32: {result['seconds']:,.1f} s with start-up, {result['rows_per_second']:,.0f} rows/s",
            f"  output: {result['files']} files, {result['output_bytes'] / 1e6:,.1f} MB; the first after "
            f"{result['first_file_seconds']:.1f} s",
            table(head, cells(rows, "{share:.0%}|{rows:,}|{seconds:,.1f}|{speed:,.0f}|{now}|{peak}")),
            f"  Memory: resident, with mapped files, sampled every second ({len(result['memory'])} samples).",
            f"  {result['checked']} rows against one call of embed_documents: relative L2 at most "
            f"{result['max_relative_l2']:.1e}, lowest cosine {result['min_cosine']:.7f}",
        ]
    )


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f}"
