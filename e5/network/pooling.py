"""Pooling of a packed batch's hidden states into one vector per text; normalization and cosine scores.

Pure functions. All accumulate in float32, whatever the model's dtype.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from e5.catalog import Pooling


def last_token(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The hidden state of each text's last token."""
    return hidden.index_select(0, cu_seqlens[1:].long() - 1).float()


def first_token(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The hidden state of each text's first token."""
    first = cu_seqlens[:-1].long().clamp_(max=len(hidden) - 1)  # a graph's unused texts may begin after the last row
    return hidden.index_select(0, first).float()


def mean(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean of each text's hidden states, special tokens included, as in the model cards.

    Rows after the last text do not count. The mean of an empty text, as a CUDA graph has them, is NaN.
    """
    lengths = cu_seqlens.diff().long()
    # unsafe=True skips the checks that `lengths` sum to the rows and are positive: rows of filler would fail them, and
    # each is a sync.
    return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {"last": last_token, "mean": mean, "cls": first_token}


def normalize(vectors: Tensor) -> Tensor:
    """L2-normalized rows, float32 [N, D]. A zero row stays zero, as in torch.nn.functional.normalize."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def scores(queries: Tensor, documents: Tensor) -> Tensor:
    """100 × cosine of each query [Q, D] with each document [N, D] → float32 [Q, N]. Inputs need not be normalized."""
    # Clamp: by rounding, a text scores 100.00002 with itself.
    return (100 * (normalize(queries) @ normalize(documents).T)).clamp_(-100, 100)
