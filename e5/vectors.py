"""The embedding array type, and the check that it holds no NaN or infinity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def check_finite(vectors: Vectors, indices: Sequence[int] | None = None, count: int | None = None) -> None:
    """Raise FloatingPointError for NaN or infinity; the message names the first such text.

    `indices`: which texts of a request of `count` texts the rows belong to. By default the rows are the whole request.
    """
    broken = ~np.isfinite(vectors).all(axis=-1)
    if broken.any():
        text_indices = np.arange(len(vectors)) if indices is None else np.array(indices)
        raise not_finite(int(min(text_indices[broken])), count or len(vectors))


def not_finite(index: int, count: int) -> FloatingPointError:
    """The error for NaN or infinity in the text at `index` of a request of `count` texts."""
    return FloatingPointError(
        f"the model gave NaN or infinity for text {index + 1} of {count}: its dtype is too narrow for this text "
        "(E5_DTYPE=bfloat16 or float32 have the range), or its weights are broken"
    )
