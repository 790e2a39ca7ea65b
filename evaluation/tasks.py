"""Names of tasks and benchmarks → mteb's tasks, with data from the hub or from a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import mteb
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from evaluation import local_data
from evaluation.errors import EvaluationError

BENCHMARKS = {"beir": "BEIR", "nano": "NanoBEIR", "mteb-en": "MTEB(eng, v1)"}
"""Our name → mteb's."""
BEIR_SMALL = ("SciFact", "NFCorpus", "ArguAna", "SCIDOCS", "FiQA2018", "TRECCOVID")
"""BEIR's six smallest: 272,000 of its 33.5 million documents."""
GROUPS = ("beir", "beir-small", "nano", "mteb-en", "sts")


@dataclass(frozen=True)
class Selection:
    """`benchmarks`: the names of the tasks of each benchmark that was asked for."""

    tasks: tuple[AbsTask, ...]
    benchmarks: dict[str, tuple[str, ...]]


def members(group: str) -> tuple[str, ...]:
    """The names of a group's tasks."""
    if group == "beir-small":
        return BEIR_SMALL
    if group == "sts":
        return tuple(name for name, task in _english().items() if task.metadata.type == "STS")
    return tuple(task.metadata.name for task in mteb.get_benchmark(BENCHMARKS[group]).tasks)


def select(names: Sequence[str], data: Path | None) -> Selection:
    """The tasks of these names and groups, each once. With a folder `data`, all data sets must be there.

    Raises EvaluationError for an unknown name, or one that has no data set in the folder.
    """
    benchmarks = {name: members(name) for name in names if name in GROUPS}
    flat = dict.fromkeys(task for name in names for task in benchmarks.get(name, (name,)))
    found: dict[str, AbsTask] = {}
    for name in flat:
        task = _hub_task(name) if data is None else local_data.task(data, name)
        if task is None:
            assert data is not None
            have = ", ".join(local_data.names(data))
            raise EvaluationError(f"--data {data} has no data set {name}: it has {have}")
        found.setdefault(task.metadata.name, task)
    return Selection(tuple(found.values()), benchmarks)


def parts(task: AbsTask) -> tuple[AbsTask, ...]:
    """The tasks that an aggregate such as CQADupstackRetrieval consists of; otherwise the task itself."""
    return tuple(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else (task,)


@cache
def _english() -> dict[str, AbsTask]:
    """The tasks of the English benchmarks, restricted to English texts."""
    benchmarks = (mteb.get_benchmark(name) for name in BENCHMARKS.values())
    return {task.metadata.name: task for benchmark in benchmarks for task in benchmark.tasks}


def _hub_task(name: str) -> AbsTask:
    names = local_data.registry()
    if name.lower() not in names:
        near = get_close_matches(name.lower(), names, n=5, cutoff=0.6)
        suggestions = ", ".join(names[match] for match in near) or "the list is at mteb.get_tasks()"
        raise EvaluationError(
            f"no task or group is called {name!r}: near names are {suggestions}; the groups are {', '.join(GROUPS)}"
        )
    name = names[name.lower()]
    return _english().get(name) or mteb.get_task(name)
