"""Data sets in a folder → mteb's tasks, without the hub.

| in the folder | task |
|---|---|
| NAME/corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, as BEIR has them | retrieval |
| NAME.csv or .tsv with sentence1, sentence2, score | STS |
| NAME-train and NAME-test, .csv or .tsv with text, label; or NAME/train.csv and NAME/test.csv | classification |
| NAME.csv or .tsv with text, label | classification, cross-validated |

A first line with the columns' names is optional; with it, columns may be in any order. CSV fields may be quoted; a
quotation mark in TSV is a character. If mteb has a task of that name, its instruction, metric and settings apply
(`banking77` is Banking77Classification).
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from evaluation import local_files
from evaluation.errors import EvaluationError

TABLES = (".csv", ".tsv")
Kind = Literal["Retrieval", "STS", "Classification"]
COLUMNS: dict[Kind, tuple[str, ...]] = {"STS": ("sentence1", "sentence2", "score"), "Classification": ("text", "label")}
CROSS_VALIDATION = "all"
"""The split of a classification table without train and test: every text is tested by a classifier of the others."""
SUBSET = "default"
SUFFIXES = ("", "Classification", "Retrieval")
MAIN_SCORES: dict[Kind, str] = {"Retrieval": "ndcg_at_10", "STS": "cosine_spearman", "Classification": "accuracy"}
BASES: dict[Kind, type[AbsTask]] = {
    "Retrieval": AbsTaskRetrieval,
    "STS": AbsTaskSTS,
    "Classification": AbsTaskClassification,
}


@dataclass(frozen=True)
class Source:
    """One data set: the files by role, `corpus`, `queries` and `qrels` of each split, or the table of each split."""

    name: str
    type: Kind
    files: dict[str, Path]


def names(folder: Path) -> list[str]:
    """The tasks whose data are in the folder. Raises EvaluationError if it is not a folder, or has none."""
    found = [source.name for source in _sources(folder)]
    if not found:
        raise EvaluationError(
            f"--data {folder} has no data set: put a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv) there, "
            "or NAME.csv with sentence1, sentence2, score, or NAME-train.csv and NAME-test.csv with text, label"
        )
    return found


def task(folder: Path, name: str) -> AbsTask | None:
    """The task with this data set of the folder, or None if it has none of this name.

    Upper and lower case count as the same. The data are read when mteb loads them; their revision is the hash of the
    files. Raises EvaluationError for a file that cannot be read as such data.
    """
    wanted = {(name + suffix).lower() for suffix in SUFFIXES} | {
        name.lower().removesuffix(suffix.lower()) for suffix in SUFFIXES
    }
    for source in _sources(folder):
        if source.name.lower() in wanted:
            return _task(source)
    return None


def known(name: str, kind: Kind) -> AbsTask | None:
    """mteb's task of this name and type, with or without the type in its name, or None."""
    for suffix in SUFFIXES:
        if registered := registry().get((name + suffix).lower()):
            candidate = mteb.get_task(registered)
            if candidate.metadata.type == kind:
                return candidate
    return None


def registry() -> dict[str, str]:
    """mteb's names of tasks, by the name in lower case."""
    from mteb.get_tasks import _TASKS_REGISTRY

    return {name.lower(): name for name in _TASKS_REGISTRY}


def _sources(folder: Path) -> Iterator[Source]:
    if not folder.is_dir():
        raise EvaluationError(f"--data {folder} is not a folder: name the folder with the data sets")
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            splits = {split.stem: split for split in sorted((path / "qrels").glob("*.tsv"))}
            tables = {table.stem: table for suffix in TABLES for table in sorted(path.glob("*" + suffix))}
            if (path / "corpus.jsonl").is_file() or splits:
                yield Source(path.name, "Retrieval", splits | {n: path / f"{n}.jsonl" for n in ("corpus", "queries")})
            elif "train" in tables and "test" in tables:
                yield Source(path.name, "Classification", {split: tables[split] for split in ("train", "test")})
        elif path.suffix in TABLES and (kind := _kind(path)):
            stem, _, split = path.stem.rpartition("-")
            pair = {name: path.with_name(f"{stem}-{name}{path.suffix}") for name in ("train", "test")}
            if kind == "STS":
                yield Source(path.stem, kind, {"test": path})
            elif not all(table.is_file() for table in pair.values()):
                yield Source(path.stem, kind, {CROSS_VALIDATION: path})
            elif split == "train":
                yield Source(stem, kind, pair)


def _kind(table: Path) -> Kind | None:
    """The type of task that a table's columns make, or None."""
    first = [cell.strip().lower() for cell in next(local_files.records(table), [])]
    named = [kind for kind, columns in COLUMNS.items() if set(columns) <= set(first)]
    return next(iter(named or [kind for kind, columns in COLUMNS.items() if len(columns) == len(first)]), None)


def _task(source: Source) -> AbsTask:
    revision = hashlib.sha256()
    for path in source.files.values():
        revision.update(local_files.digest(path))
    dataset = {"path": f"local/{source.name}", "revision": revision.hexdigest()[:16]}
    registered = known(source.name, source.type)
    metadata = registered.metadata if registered else _own_metadata(source)
    metadata = metadata.model_copy(update={"dataset": dataset, "eval_langs": ["eng-Latn"]})
    # A class of its own: mteb drops an instance's metadata when it unloads the data.
    base = type(registered) if registered else BASES[source.type]
    task: AbsTask = type("LocalTask", (base,), {"metadata": metadata})()
    splits = [split for split in source.files if split not in ("corpus", "queries", "train")] or ["test"]
    own = [split for split in task.eval_splits if split in splits]
    task._eval_splits = own or (["test"] if "test" in splits else splits[:1])
    read: dict[Kind, Callable[[Source, AbsTask], Any]] = {
        "Retrieval": _retrieval,
        "STS": _sts,
        "Classification": _classification,
    }

    def load_data(**_: object) -> None:
        task.dataset = {SUBSET: read[source.type](source, task)}
        task.data_loaded = True

    task.load_data = load_data  # type: ignore[assignment, method-assign]
    return task


def _own_metadata(source: Source) -> TaskMetadata:
    """Of a task that mteb does not have."""
    return TaskMetadata(
        name=source.name,
        description=f"The data set {source.name} of a local folder.",
        reference=None,
        dataset={"path": "local", "revision": "local"},
        type=source.type,
        category="t2c" if source.type == "Classification" else "t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=MAIN_SCORES[source.type],
        modalities=["text"],
    )


def _retrieval(source: Source, task: AbsTask) -> dict[str, Any]:
    corpus = local_files.documents(source.files["corpus"], ("title", "text"))
    queries = local_files.documents(source.files["queries"], ("text",))
    splits = {}
    for split in task.eval_splits:
        qrels = local_files.judgements(source.files[split], set(queries["id"]), set(corpus["id"]))
        judged = [index for index, query in enumerate(queries["id"]) if query in qrels]
        splits[split] = {
            "corpus": Dataset.from_dict(corpus),
            "queries": Dataset.from_dict({name: [column[i] for i in judged] for name, column in queries.items()}),
            "relevant_docs": qrels,
            "top_ranked": None,
        }
    return splits


def _sts(source: Source, _: AbsTask) -> DatasetDict:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS["STS"]}
    path = source.files["test"]
    for number, (first, second, text) in local_files.table_rows(path, COLUMNS["STS"]):
        try:
            score = float(text)
        except ValueError:
            raise EvaluationError(f"{path}, row {number}: the score {text!r} is not a number") from None
        for column, value in zip(columns.values(), (first, second, score), strict=True):
            column.append(value)
    return DatasetDict({"test": Dataset.from_dict(columns)})


def _classification(source: Source, task: AbsTask) -> DatasetDict:
    tables = {
        split: [row for _, row in local_files.table_rows(path, COLUMNS["Classification"])]
        for split, path in source.files.items()
    }
    # Numbers: scikit-learn wants them for the scores of two labels.
    labels = {
        label: index for index, label in enumerate(sorted({label for rows in tables.values() for _, label in rows}))
    }
    splits = {
        split: Dataset.from_dict({"text": [text for text, _ in rows], "label": [labels[label] for _, label in rows]})
        for split, rows in tables.items()
    }
    assert isinstance(task, AbsTaskClassification)
    task.is_cross_validation = CROSS_VALIDATION in splits
    task.train_split = CROSS_VALIDATION if task.is_cross_validation else "train"
    return DatasetDict(splits)
