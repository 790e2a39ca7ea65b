"""How many texts and characters a task has: from mteb's statistics for data on the hub, counted for local data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mteb.abstasks import AbsTask, AbsTaskClassification

from evaluation.tasks import parts

EXPERIMENT_LABELS = 100
"""Assumed number of labels where the statistics do not tell."""


@dataclass(frozen=True)
class Texts:
    """Texts of one kind, for example a task's documents."""

    count: int
    characters: int


@dataclass(frozen=True)
class Size:
    """`judged`: queries, pairs or texts that the score is the mean over. `sample`: some local texts, to tokenize."""

    texts: tuple[Texts, ...]
    judged: int
    sample: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return sum(texts.count for texts in self.texts)

    @property
    def characters(self) -> int:
        return sum(texts.characters for texts in self.texts)


def measure(task: AbsTask, local: bool) -> Size | None:
    """The size of a task, or None if mteb has no statistics. Reads local data."""
    sizes = [_count(part) if local else _statistics(part) for part in parts(task)]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return Size(
        tuple(texts for size in known for texts in size.texts),
        sum(size.judged for size in known),
        tuple(text for size in known for text in size.sample),
    )


def _count(task: AbsTask) -> Size:
    task.load_data()
    assert task.dataset is not None
    (splits,) = task.dataset.values()
    kinds: list[list[str]] = []
    judged = 0
    for name, split in splits.items():
        if "corpus" in split:
            corpus = split["corpus"]
            kinds.append([f"{a} {b}" for a, b in zip(corpus["title"], corpus["text"], strict=True)])
            kinds.append(list(split["queries"]["text"]))
            judged += len(split["queries"])
        elif "sentence1" in split.column_names:
            kinds += [list(split[column]) for column in ("sentence1", "sentence2")]
            judged += len(split)
        elif name == "train":
            labels = len(set(split["label"]))
            kinds.append(list(split["text"])[: _train_texts(task, labels)])
        else:
            kinds.append(list(split["text"]))
            judged += len(split)
    task.unload_data()
    texts = tuple(Texts(len(kind), sum(map(len, kind))) for kind in kinds)
    return Size(texts, judged, tuple(text for kind in kinds for text in kind[:: -(-len(kind) // 500)]))


def _statistics(task: AbsTask) -> Size | None:
    statistics = task.metadata.descriptive_stats or {}
    texts: list[Texts] = []
    judged = 0
    for split in task.eval_splits:
        for subset in _subsets(task, statistics.get(split, {})):
            counts: dict[str, int] = {}
            for name, kind in subset.items():
                if isinstance(kind, Mapping) and kind.get("total_text_length"):
                    characters = int(kind["total_text_length"])
                    counts[name] = round(characters / kind["average_text_length"])
                    texts.append(Texts(counts[name], characters))
            judged += counts.get("queries_text_statistics") or int(subset["num_samples"])
            if isinstance(task, AbsTaskClassification) and texts:
                train = _train_texts(task, subset.get("label_statistics", {}).get("unique_labels", EXPERIMENT_LABELS))
                texts.append(Texts(train, train * texts[-1].characters // max(1, texts[-1].count)))
    return Size(tuple(texts), judged) if texts else None


def _subsets(task: AbsTask, split: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    each = split.get("hf_subset_descriptive_stats")
    if each is None:
        yield from [split] if split else []
    else:
        yield from (each[subset] for subset in task.hf_subsets if subset in each)


def _train_texts(task: AbsTask, labels: int) -> int:
    """At most so many training texts are embedded: some for each label in each experiment."""
    assert isinstance(task, AbsTaskClassification)
    return labels * task.samples_per_label * task.n_experiments
