"""Vectors of fewer bits, as they would be stored, back in float32: what do they cost in quality?"""

from collections.abc import Callable

import numpy as np

from e5.vectors import Vectors, to_int8, to_ubinary


def _float16(vectors: Vectors) -> Vectors:
    return vectors.astype(np.float16).astype(np.float32)


def _int8(vectors: Vectors) -> Vectors:
    numbers, scales = to_int8(vectors)
    restored: Vectors = numbers * scales[:, None]
    return restored


def _ubinary(vectors: Vectors) -> Vectors:
    """Restored to length 1, the cosine decreases with the Hamming distance of the bits."""
    dimensions = vectors.shape[1]
    bits = np.unpackbits(to_ubinary(vectors), axis=1, count=dimensions)
    component = np.float32(dimensions**-0.5)
    return np.where(bits == 1, component, -component)


COMPRESSIONS: dict[str, Callable[[Vectors], Vectors]] = {
    "float32": lambda vectors: vectors,
    "float16": _float16,
    "int8": _int8,
    "ubinary": _ubinary,
}
