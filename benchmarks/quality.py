"""Quality on labelled texts: ranking answers to questions (TrecQA), and sentence similarity (STS).

File formats: TrecQA has a header and the columns qtext, label (1 = answers the question) and atext. STS has no header;
its columns are two sentences and their similarity as judged by people. With `task` None, texts are embedded verbatim.
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
"""Training tasks of the models, whose instructions the queries get."""


class SentencePair(NamedTuple):
    """Two sentences and their similarity as judged by people."""

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


def read_pairs(path: Path) -> list[SentencePair]:
    with path.open(encoding="utf-8", newline="") as file:
        return [SentencePair(row[0], row[1], float(row[2])) for row in csv.reader(file)]


def read_candidates(path: Path) -> list[Candidate]:
    with path.open(encoding="utf-8", newline="") as file:
        return [Candidate(row["qtext"], row["label"] == "1", row["atext"]) for row in csv.DictReader(file)]


def quality(embedder: Embedder, folder: Path) -> dict[str, float]:
    """Score the dev sets in `folder`, with the instructions of the models' own tasks."""
    candidates, pairs = read_candidates(folder / RETRIEVAL), read_pairs(folder / SIMILARITY)
    return {
        "trecqa_mrr": ranking(embedder, candidates, tasks.instruction(RETRIEVAL_TASK)).mrr,
        "stsb_spearman": similarity(embedder, pairs, tasks.instruction(SIMILARITY_TASK)),
    }


def ranking(embedder: Embedder, candidates: Sequence[Candidate], task: str | None) -> Ranking:
    """Rank the answers of each question that has both right and wrong ones; the others cannot tell models apart."""
    texts = [candidate.answer for candidate in candidates]
    answers = _embed(embedder, texts, None) if task is None else embedder.embed_documents(texts, progress=False)
    groups = [list(group) for _, group in groupby(range(len(candidates)), key=lambda index: candidates[index].question)]
    groups = [group for group in groups if len({candidates[index].right for index in group}) == 2]
    questions = _embed(embedder, [candidates[group[0]].question for group in groups], task)
    rankings = []
    for question, group in zip(questions, groups, strict=True):
        order = np.argsort(-scores(question[None], answers[group])[0], kind="stable")
        rankings.append([candidates[group[index]].right for index in order])
    return Ranking(
        100 * float(np.mean([reciprocal_rank(ranked) for ranked in rankings])),
        100 * float(np.mean([average_precision(ranked) for ranked in rankings])),
    )


def reciprocal_rank(right: Sequence[bool]) -> float:
    """1 / rank of the first right answer."""
    return 1 / (1 + right.index(True))


def average_precision(right: Sequence[bool]) -> float:
    """Mean of the precision at the rank of each right answer."""
    ranks = np.flatnonzero(right) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def similarity(embedder: Embedder, pairs: Sequence[SentencePair], task: str | None) -> float:
    """Spearman's correlation between cosines and judged similarity, × 100."""
    predicted = cosines(embedder, [(pair.first, pair.second) for pair in pairs], task)
    return 100 * spearman(predicted, np.array([pair.similarity for pair in pairs]))


def cosines(embedder: Embedder, pairs: Sequence[tuple[str, str]], task: str | None) -> Doubles:
    """Cosine of each pair of texts; both sides get the instruction."""
    vectors = _embed(embedder, [text for pair in pairs for text in pair], task).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine: Doubles = (vectors[::2] * vectors[1::2]).sum(axis=1)
    return cosine


def _embed(embedder: Embedder, texts: Sequence[str], task: str | None) -> Vectors:
    if task is None:
        return embedder.embed_texts(texts, progress=False)
    return embedder.embed_queries(texts, task=task, progress=False)


def spearman(first: Doubles, second: Doubles) -> float:
    """Correlation of the ranks; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Doubles) -> Doubles:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Doubles = (last - (counts - 1) / 2)[inverse]
    return ranks
