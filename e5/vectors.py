"""The embedding array type, smaller ones, and the check that vectors hold no NaN or infinity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def to_int8(vectors: Vectors) -> tuple[NDArray[np.int8], Vectors]:
    """float32 [N, D] → int8 [N, D] and scales float32 [N], where vector ≈ scale × int8.

    A vector's largest component becomes 127 or -127; a vector of zeros stays one.
    """
    scales: Vectors = (np.abs(vectors).max(axis=1) / np.float32(127)).clip(np.finfo(np.float32).tiny)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def to_ubinary(vectors: Vectors) -> NDArray[np.uint8]:
    """float32 [N, D] → uint8 [N, ⌈D / 8⌉]: one bit a dimension, 1 if it is positive, packed as numpy.packbits does."""
    return np.packbits(vectors > 0, axis=1)


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
