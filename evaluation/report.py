"""Scores beside published ones: the JSON of --out, and the table on the screen."""

import errno
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask
from mteb.results import TaskResult

from evaluation import published
from evaluation.encoder import Counts, Encoder
from evaluation.errors import EvaluationError
from evaluation.sizes import Size

Json = dict[str, Any]
RESAMPLED = ("Classification", "Clustering")
"""Types of tasks whose metric trains on random samples, so that it differs by some tenths from machine to machine."""
MANY_JUDGED = 1000


def tolerance(kind: str, judged: int | None) -> float:
    """The largest difference from a published score that counts as the same, either way, in points of 100.

    A score that is too high is an error, too.
    """
    return 0.3 if kind not in RESAMPLED and (judged or 0) > MANY_JUDGED else 1.0


def entry(task: AbsTask, result: TaskResult, encoder: Encoder, size: Size | None, counts: Counts | None) -> Json:
    """One task's part of the report. Numbers that an earlier run has not kept are None."""
    split = ", ".join(task.eval_splits)  # of several, the score is the mean: no published score is of such a mean
    score = round(100 * float(result.get_score(list(task.eval_splits))), 4)
    known = published.find(task.metadata.name, split, encoder.backend.model.name, encoder.protocol.name)
    difference = round(score - known.score, 4) if known and known.comparable else None
    allowed = None
    if (
        difference is not None and encoder.vectors == "float32"
    ):  # compressed vectors lose something, which is what they are measured for
        allowed = tolerance(task.metadata.type, size.judged if size else None)
    return {
        "type": task.metadata.type,
        "split": split,
        "metric": task.metadata.main_score,
        "main_score": score,
        "published": known.score if known else None,
        "source": known.source if known else None,
        "difference": difference,
        "tolerance": allowed,
        "within": None if difference is None or allowed is None else abs(difference) <= allowed,
        "texts": counts.texts if counts else None,
        "tokens": counts.tokens if counts else None,
        "truncated": counts.truncated if counts else None,
        "cached": counts.cached if counts else None,
        "seconds": round(result.evaluation_time, 1) if result.evaluation_time is not None else None,
    }


def benchmark_means(tasks: Mapping[str, Json], benchmarks: Mapping[str, Sequence[str]]) -> Json:
    """The mean of each benchmark, ours and published; the published one only of figures that are all comparable."""
    means: Json = {}
    for name, names in benchmarks.items():
        done = [tasks[task] for task in names if task in tasks]
        if done:
            figures = [task["published"] for task in done if task["difference"] is not None]
            means[name] = {
                "tasks": len(done),
                "of": len(names),
                "mean": round(sum(task["main_score"] for task in done) / len(done), 2),
                "published": round(sum(figures) / len(figures), 2) if len(figures) == len(done) else None,
            }
    return means


def table(report: Json) -> str:
    """The report as text."""
    lines = [f"{'task':<40} {'metric':<18} {'ours':>7} {'published':>9} {'difference':>10}  source"]
    for name, task in report["tasks"].items():
        mark = {True: "", False: "  OUTSIDE", None: ""}[task["within"]]
        lines.append(
            f"{name:<40} {task['metric']:<18} {task['main_score']:>7.2f} {_number(task['published'], 9)} "
            f"{_number(task['difference'], 10, '+')}  {task['source'] or ''}{mark}"
        )
    for name, mean in report["benchmarks"].items():
        label = f"mean of {mean['tasks']} of {mean['of']} tasks of {name}"
        lines.append(f"{label:<59} {mean['mean']:>7.2f} {_number(mean['published'], 9)}")
    lines += [f"{name}: FAILED: {message}" for name, message in report["failed"].items()]
    return "\n".join(lines)


def check_writable(path: Path) -> None:
    """Raise EvaluationError if the file cannot be written: better now than after hours."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written ({error.strerror}): name another file") from error


def dumps(report: Json) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _number(value: float | None, columns: int, sign: str = "") -> str:
    return f"{'–':>{columns}}" if value is None else f"{value:>{sign}{columns}.2f}"
