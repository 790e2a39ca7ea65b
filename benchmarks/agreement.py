"""Differences between two sets of vectors of the same texts."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Json
from e5.vectors import Vectors

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """Distance of vectors [N, D] from a reference [N, D], computed in float64, where NaN stays NaN.

    Relative L2: ‖a − b‖ / ‖b‖ per row. Centred cosine: the reference's mean is subtracted from both first, because a
    few dominating dimensions hide differences from a plain cosine. Score: 100 × cosine of any two texts.
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
    relative_l2: Any = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    mean = b.mean(axis=0)
    centred_cosine = (_normalized(a - mean) * _normalized(b - mean)).sum(axis=1)
    score_difference = 100 * np.abs(_normalized(a) @ _normalized(a).T - _normalized(b) @ _normalized(b).T)
    return Distance(
        float(relative_l2.max()),
        float(np.median(relative_l2)),
        float(centred_cosine.min()),
        float(score_difference.max()),
        bool(np.array_equal(vectors, reference)),
    )


def _normalized(vectors: Doubles) -> Doubles:
    normalized: Doubles = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized
