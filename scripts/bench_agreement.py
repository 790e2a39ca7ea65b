"""How far two sets of vectors of the same texts lie apart, and how well vectors do their work on labelled texts."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5 import scores, tasks
from e5.embedder import Embedder
from e5.vectors import Vectors
from scripts.bench_report import Json

Doubles = NDArray[np.float64]
RETRIEVAL, SIMILARITY = "trecqa-dev.csv", "stsb-en-dev.csv"
RETRIEVAL_TASK, SIMILARITY_TASK = "NQ", "STS"
"""Tasks of the models' training, whose instructions the queries get."""


@dataclass(frozen=True)
class Distance:
    """Of vectors from a reference, [N, D] each.

    Relative L2: ‖a − b‖ / ‖b‖ of each row. Centred cosine: after the mean of the reference is taken off both, so that
    the few dimensions that dominate every vector hide nothing. Score: 100 × cosine of any two texts. All in float64, in
    which NaN stays NaN.
    """

    max_relative_l2: float
    median_relative_l2: float
    min_centred_cosine: float
    max_score_difference: float
    identical: bool

    def facts(self) -> Json:
        return asdict(self)


def distance(vectors: Vectors, reference: Vectors) -> Distance:
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    relative: Any = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    middle = b.mean(axis=0)
    centred = (_unit(a - middle) * _unit(b - middle)).sum(axis=1)
    apart = 100 * np.abs(_unit(a) @ _unit(a).T - _unit(b) @ _unit(b).T)
    return Distance(
        float(relative.max()),
        float(np.median(relative)),
        float(centred.min()),
        float(apart.max()),
        bool(np.array_equal(vectors, reference)),
    )


def _unit(rows: Doubles) -> Doubles:
    unit: Doubles = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def quality(embedder: Embedder, folder: Path) -> Json:
    """Mean reciprocal rank of the first right answer, and Spearman's correlation with people's similarity, × 100."""
    with (folder / RETRIEVAL).open(encoding="utf-8", newline="") as file:
        answers = [(row["qtext"], row["label"] == "1", row["atext"]) for row in csv.DictReader(file)]
    with (folder / SIMILARITY).open(encoding="utf-8", newline="") as file:
        pairs = [(row[0], row[1], float(row[2])) for row in csv.reader(file)]
    return {"trecqa_mrr": 100 * _mrr(embedder, answers), "stsb_spearman": 100 * _similarity(embedder, pairs)}


def _mrr(embedder: Embedder, answers: Sequence[tuple[str, bool, str]]) -> float:
    """Over the questions that have right and wrong answers: with others no order is better than another."""
    found = []
    vectors = embedder.embed_documents([answer for _, _, answer in answers], progress=False)
    for question, group in groupby(range(len(answers)), key=lambda index: answers[index][0]):
        indices = list(group)
        right = [answers[index][1] for index in indices]
        if len(set(right)) == 2:
            query = embedder.embed_queries([question], task=tasks.instruction(RETRIEVAL_TASK))
            order = np.argsort(-scores(query, vectors[indices])[0], kind="stable")
            found.append(reciprocal_rank([right[index] for index in order]))
    return float(np.mean(found))


def reciprocal_rank(right: Sequence[bool]) -> float:
    """1 / the place of the first that is right."""
    return 1 / (1 + right.index(True))


def _similarity(embedder: Embedder, pairs: Sequence[tuple[str, str, float]]) -> float:
    texts = [text for pair in pairs for text in pair[:2]]
    vectors = embedder.embed_queries(texts, task=tasks.instruction(SIMILARITY_TASK), normalize=True, progress=False)
    cosines = (vectors[::2].astype(np.float64) * vectors[1::2]).sum(axis=1)
    return spearman(cosines, np.array([gold for _, _, gold in pairs]))


def spearman(one: Doubles, other: Doubles) -> float:
    """Correlation of the ranks; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Doubles) -> Doubles:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Doubles = (last - (counts - 1) / 2)[inverse]
    return ranks
