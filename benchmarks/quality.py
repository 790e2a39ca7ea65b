"""How well a model does its work on labelled texts: ranking answers to questions, and similarity of sentences.

Texts of one set: TrecQA's columns are qtext, label (1 = answers) and atext, with a header; STS files have two sentences
and people's similarity, without one. A `task` of None embeds the texts exactly as given.
"""

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5 import scores, tasks
from e5.embedder import Embedder
from e5.vectors import Vectors

Doubles = NDArray[np.float64]
RETRIEVAL, SIMILARITY = "trecqa-dev.csv", "stsb-en-dev.csv"
RETRIEVAL_TASK, SIMILARITY_TASK = "NQ", "STS"
"""Tasks of the models' training, whose instructions the queries get."""


class Pair(NamedTuple):
    """Two sentences and how similar people found them."""

    first: str
    second: str
    similarity: float


class Candidate(NamedTuple):
    """A sentence, and whether it answers the question."""

    question: str
    right: bool
    answer: str


class Ranking(NamedTuple):
    """Mean reciprocal rank of the first right answer, and mean average precision, both × 100."""

    mrr: float
    map: float


def read_pairs(path: Path) -> list[Pair]:
    with path.open(encoding="utf-8", newline="") as file:
        return [Pair(row[0], row[1], float(row[2])) for row in csv.reader(file)]


def read_candidates(path: Path) -> list[Candidate]:
    with path.open(encoding="utf-8", newline="") as file:
        return [Candidate(row["qtext"], row["label"] == "1", row["atext"]) for row in csv.DictReader(file)]


def quality(embedder: Embedder, folder: Path) -> dict[str, float]:
    """Of the dev sets in a folder, with the instructions of the models' own tasks."""
    answers, pairs = read_candidates(folder / RETRIEVAL), read_pairs(folder / SIMILARITY)
    return {
        "trecqa_mrr": ranking(embedder, answers, tasks.instruction(RETRIEVAL_TASK)).mrr,
        "stsb_spearman": similarity(embedder, pairs, tasks.instruction(SIMILARITY_TASK)),
    }


def ranking(embedder: Embedder, candidates: Sequence[Candidate], task: str | None) -> Ranking:
    """Over the questions that have right and wrong answers: with others no order is better than another."""
    texts = [one.answer for one in candidates]
    answers = _embed(embedder, texts, None) if task is None else embedder.embed_documents(texts, progress=False)
    groups = [list(group) for _, group in groupby(range(len(candidates)), key=lambda at: candidates[at].question)]
    groups = [group for group in groups if len({candidates[at].right for at in group}) == 2]
    questions = _embed(embedder, [candidates[group[0]].question for group in groups], task)
    orders = []
    for question, group in zip(questions, groups, strict=True):
        order = np.argsort(-scores(question[None], answers[group])[0], kind="stable")
        orders.append([candidates[group[at]].right for at in order])
    means = (float(np.mean([measure(order) for order in orders])) for measure in (reciprocal_rank, average_precision))
    return Ranking(*(100 * mean for mean in means))


def reciprocal_rank(right: Sequence[bool]) -> float:
    """1 / the place of the first that is right."""
    return 1 / (1 + right.index(True))


def average_precision(right: Sequence[bool]) -> float:
    """The mean, over the places of the right ones, of the share of right ones up to there."""
    places = np.flatnonzero(right) + 1
    return float(np.mean(np.arange(1, len(places) + 1) / places))


def similarity(embedder: Embedder, pairs: Sequence[Pair], task: str | None) -> float:
    """Spearman's correlation of the cosines with people's similarity, × 100."""
    found = cosines(embedder, [(one.first, one.second) for one in pairs], task)
    return 100 * spearman(found, np.array([one.similarity for one in pairs]))


def cosines(embedder: Embedder, pairs: Sequence[tuple[str, str]], task: str | None) -> Doubles:
    """Of each pair of texts; both sides with the instruction."""
    vectors = _embed(embedder, [text for pair in pairs for text in pair], task).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Doubles = (vectors[::2] * vectors[1::2]).sum(axis=1)
    return found


def _embed(embedder: Embedder, texts: Sequence[str], task: str | None) -> Vectors:
    if task is None:
        return embedder.embed_texts(texts, progress=False)
    return embedder.embed_queries(texts, task=task, progress=False)


def spearman(one: Doubles, other: Doubles) -> float:
    """Correlation of the ranks; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Doubles) -> Doubles:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Doubles = (last - (counts - 1) / 2)[inverse]
    return ranks
