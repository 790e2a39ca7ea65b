"""What the engine gives and the answer is made of: float32 arrays, in which NaN and infinity are errors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def check_finite(vectors: Vectors, indices: Sequence[int] | None = None, count: int | None = None) -> None:
    """Raises FloatingPointError that names the first text with NaN or infinity.

    `indices` are the rows' places among the `count` texts of a request; None: the rows are all of them, in order.
    """
    broken = ~np.isfinite(vectors).all(axis=-1)
    if broken.any():
        places = np.arange(len(vectors)) if indices is None else np.array(indices)
        raise not_finite(int(min(places[broken])), count or len(vectors))


def not_finite(index: int, count: int) -> FloatingPointError:
    """The error for a text with NaN or infinity: the text at `index` of the `count` of a request."""
    return FloatingPointError(
        f"the model gave NaN or infinity for text {index + 1} of {count}: its dtype is too narrow for this text "
        "(E5_DTYPE=bfloat16 or float32 have the range), or its weights are broken"
    )
