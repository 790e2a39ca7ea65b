"""A model's quality on labelled texts: ranking of answers (TrecQA) and similarity of sentences (STS).

TrecQA files have a header and the columns qtext, label (1 = answer) and atext. STS files have two sentences and a
human similarity rating, without a header. With `task=None`, texts are embedded without any prompt.
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
"""E5's own training tasks, whose instructions the queries get."""


class SentencePair(NamedTuple):
    """Two sentences and the human rating of their similarity."""

    first: str
    second: str
    similarity: float


class Candidate(NamedTuple):
    """A sentence, and whether it answers the question."""

    question: str
    is_answer: bool
    sentence: str


class RankingMetrics(NamedTuple):
    """Mean reciprocal rank of the first right answer, and mean average precision, both × 100."""

    mrr: float
    map: float


def read_pairs(path: Path) -> list[SentencePair]:
    """The pairs of an STS file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [SentencePair(row[0], row[1], float(row[2])) for row in csv.reader(file)]


def read_candidates(path: Path) -> list[Candidate]:
    """The candidates of a TrecQA file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Candidate(row["qtext"], row["label"] == "1", row["atext"]) for row in csv.DictReader(file)]


def quality(embedder: Embedder, folder: Path) -> dict[str, float]:
    """MRR and Spearman's correlation, × 100, on the dev sets in `folder`, with the instructions of E5's own tasks."""
    candidates, pairs = read_candidates(folder / RETRIEVAL), read_pairs(folder / SIMILARITY)
    return {
        "trecqa_mrr": ranking(embedder, candidates, tasks.instruction(RETRIEVAL_TASK)).mrr,
        "stsb_spearman": similarity(embedder, pairs, tasks.instruction(SIMILARITY_TASK)),
    }


def ranking(embedder: Embedder, candidates: Sequence[Candidate], task: str | None) -> RankingMetrics:
    """Metrics over the questions that have both right and wrong candidates; for others any order is equally good."""
    texts = [candidate.sentence for candidate in candidates]
    documents = embed(embedder, texts, None) if task is None else embedder.embed_documents(texts, progress=False)
    groups = [list(group) for _, group in groupby(range(len(candidates)), key=lambda index: candidates[index].question)]
    groups = [group for group in groups if len({candidates[index].is_answer for index in group}) == 2]
    questions = embed(embedder, [candidates[group[0]].question for group in groups], task)
    rankings = []
    for question, group in zip(questions, groups, strict=True):
        order = np.argsort(-scores(question[None], documents[group])[0], kind="stable")
        rankings.append([candidates[group[index]].is_answer for index in order])
    mrr = np.mean([reciprocal_rank(ranked) for ranked in rankings])
    mean_precision = np.mean([average_precision(ranked) for ranked in rankings])
    return RankingMetrics(100 * float(mrr), 100 * float(mean_precision))


def reciprocal_rank(ranked: Sequence[bool]) -> float:
    """1 / the rank of the first right answer. `ranked`: whether each candidate is right, best candidate first."""
    return 1 / (1 + ranked.index(True))


def average_precision(ranked: Sequence[bool]) -> float:
    """The mean, over the right answers, of the precision at their rank."""
    ranks = np.flatnonzero(ranked) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def similarity(embedder: Embedder, pairs: Sequence[SentencePair], task: str | None) -> float:
    """Spearman's correlation of the cosines with the human ratings, × 100."""
    predicted = cosines(embedder, [(pair.first, pair.second) for pair in pairs], task)
    return 100 * spearman(predicted, np.array([pair.similarity for pair in pairs]))


def cosines(embedder: Embedder, pairs: Sequence[tuple[str, str]], task: str | None) -> Doubles:
    """The cosine of each pair of texts, both with the instruction."""
    vectors = embed(embedder, [text for pair in pairs for text in pair], task).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products: Doubles = (vectors[::2] * vectors[1::2]).sum(axis=1)
    return products


def embed(embedder: Embedder, texts: Sequence[str], task: str | None) -> Vectors:
    """Vectors of texts with an instruction, or, for `task=None`, without any prompt."""
    if task is None:
        return embedder.embed_texts(texts, progress=False)
    return embedder.embed_queries(texts, task=task, progress=False)


def spearman(x: Doubles, y: Doubles) -> float:
    """The correlation of the ranks. Equal values get the mean of their ranks."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Doubles) -> Doubles:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Doubles = (last - (counts - 1) / 2)[inverse]
    return ranks
