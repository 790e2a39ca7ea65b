"""Token ids as plain lists, which tests can write down and compare."""

from collections.abc import Iterable, Sequence

import numpy as np

from e5.network import batches
from e5.tokens import TokenIds


def arrays(texts: Iterable[Sequence[int]]) -> list[TokenIds]:
    """Lists of ids → the arrays that the package takes."""
    return [np.array(ids, dtype=np.int32) for ids in texts]


def lists(texts: Iterable[TokenIds]) -> list[list[int]]:
    """The arrays that the package returns → lists of ids."""
    return [ids.tolist() for ids in texts]


def pack(
    texts: Iterable[Sequence[int]], padding_idx: int | None = None, bucket_step: int | None = None
) -> batches.PackedBatch:
    """`e5.network.batches.pack` for lists of ids."""
    return batches.pack(arrays(texts), padding_idx, bucket_step)
