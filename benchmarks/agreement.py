"""How far two sets of vectors of the same texts lie apart."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Json
from e5.vectors import Vectors

Doubles = NDArray[np.float64]


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
