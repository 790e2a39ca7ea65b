"""Evaluate tasks one after another, and report after each, so that a killed run has left what it computed."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import mteb
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.results import TaskResult

from e5_cog.repository import ROOT
from evaluation import report
from evaluation.encoder import Counts, Encoder
from evaluation.errors import EvaluationError, StoppedError
from evaluation.report import Json
from evaluation.sizes import Size
from evaluation.tasks import Selection, parts

BATCH_TEXTS = 1024
"""Texts that mteb passes at a time. The encoder collects them all before it makes batches of its own."""
MODULES = ("backends", "compress", "encoder", "local_data", "local_files", "protocols", "tasks")
MODULES = ("backends", "compress", "encoder", "local_data", "local_files", "protocols", "tasks")
CODE = ("e5/prompts.py", "e5/tasks.json", *(f"evaluation/{name}.py" for name in MODULES))
"""Files that decide which texts are embedded, and how vectors are changed: results of other versions are not used."""


def evaluate(
    selection: Selection,
    encoder: Encoder,
    sizes: Mapping[str, Size | None],
    folder: Path,
    facts: Json,
    write: Callable[[Json], None],
) -> tuple[Json, Exception | None]:
    """The report, and the error that ended the run early. mteb keeps finished tasks in `folder` and skips them there.

    `facts`: of the report, about the model. `write` gets the report so far, the first time before anything is computed.
    """
    results = folder / _code_digest()
    summary: Json = {**facts, "tasks": {}, "benchmarks": {}, "failed": {}}
    write(summary)
    for task in selection.tasks:
        name = task.metadata.name
        encoder.progress.name(name)
        try:
            result = _evaluate_task(task, encoder, results)
        except StoppedError as error:  # the next task would fail as well
            summary["failed"][name] = str(error)
            write(summary)
            return summary, error
        except EvaluationError as error:
            summary["failed"][name] = str(error)
        except Exception as error:  # a data set that cannot be loaded must not cost the other tasks
            summary["failed"][name] = f"{type(error).__name__}: {error}"
        else:
            size, counts = sizes[name], _sum(encoder.counts.get(part.metadata.name) for part in parts(task))
            if counts is None and size is not None:
                encoder.progress.skip(size.characters)
            summary["tasks"][name] = report.entry(task, result, encoder, size, counts)
            summary["benchmarks"] = report.benchmark_means(summary["tasks"], selection.benchmarks)
        write(summary)
    return summary, None


def _evaluate_task(task: AbsTask, encoder: Encoder, results: Path) -> TaskResult:
    # mteb 2.26 also uses a finished result if the data set's revision has changed: so each revision has a folder.
    revision = hashlib.sha256("".join(part.metadata.revision for part in parts(task)).encode()).hexdigest()[:8]
    result = mteb.evaluate(
        encoder,
        task,
        cache=ResultCache(results / revision),
        encode_kwargs={"batch_size": BATCH_TEXTS, "show_progress_bar": False},
        show_progress_bar=False,
        co2_tracker=False,
    )
    if not math.isfinite(result.task_results[0].get_score()):
        raise EvaluationError("the score is not a number: the vectors, or the scores of the data, are all the same")
    return result.task_results[0]


def _sum(counts: Iterable[Counts | None]) -> Counts | None:
    """The sum of what the parts of a task took, or None if nothing was computed."""
    known = [count for count in counts if count is not None]
    if not known:
        return None
    return Counts(*(sum(getattr(count, name) for count in known) for name in Counts.__annotations__))


def _code_digest() -> str:
    digest = hashlib.sha256(mteb.__version__.encode())
    for path in CODE:
        digest.update((ROOT / path).read_bytes())
    return f"results-{digest.hexdigest()[:8]}"
