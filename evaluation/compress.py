"""Vectors of fewer bits, as they would be stored, back in float32: what do they cost in quality?"""

from collections.abc import Callable

import numpy as np

from e5.vectors import Vectors


def _float16(vectors: Vectors) -> Vectors:
    return vectors.astype(np.float16).astype(np.float32)


def _int8(vectors: Vectors) -> Vectors:
    """Whole numbers from -127 to 127 and one scale for each vector, whose largest component becomes 127."""
    scale = np.abs(vectors).max(axis=1, keepdims=True).clip(np.finfo(np.float32).tiny) / np.float32(127)
    restored: Vectors = np.rint(vectors / scale) * scale
    return restored


def _ubinary(vectors: Vectors) -> Vectors:
    """One bit for each sign. Restored to length 1, the cosine decreases with the Hamming distance of the bits."""
    component = np.float32(vectors.shape[1] ** -0.5)
    return np.where(vectors > 0, component, -component)


COMPRESSIONS: dict[str, Callable[[Vectors], Vectors]] = {
    "float32": lambda vectors: vectors,
    "float16": _float16,
    "int8": _int8,
    "ubinary": _ubinary,
}
