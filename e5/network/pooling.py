"""Hidden states of a packed batch → one float32 vector a text; norms and cosine scores. Pure functions.

Accumulation is in float32 whatever the model's dtype is.
"""

import torch
from torch import Tensor

from e5.catalog import Pooling


def pool(kind: Pooling, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """hidden [T, D] of any float dtype, cu_seqlens int [N + 1] → float32 [N, D]."""
    return last_token(hidden, cu_seqlens) if kind == "last" else mean(hidden, cu_seqlens)


def last_token(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The hidden state of each text's last token."""
    return hidden.index_select(0, cu_seqlens[1:].long() - 1).float()


def mean(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean of each text's hidden states, special tokens included, as the model cards do it."""
    lengths = cu_seqlens.diff().long()
    # unsafe: skip the checks of `lengths`, which read its minimum and sum back from the GPU: two waits in every batch.
    return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)


def normalize(vectors: Tensor) -> Tensor:
    """Rows of length 1; float32 [N, D]. A zero row stays zero, as torch.nn.functional.normalize leaves it."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def scores(queries: Tensor, documents: Tensor) -> Tensor:
    """100 × cosine of each query [Q, D] with each document [N, D] → float32 [Q, N]; input norms do not matter."""
    # Rounding gives a text with itself 100.00002; a cosine stays within its bounds.
    return (100 * (normalize(queries) @ normalize(documents).T)).clamp_(-100, 100)
