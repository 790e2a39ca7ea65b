"""A stand-in for torch's variable-length attention operator, which runs on GPUs only: the textbook formula on the CPU.

The operator leaves rows that belong to no text undefined. Here they are NaN, so that a test notices code that reads
them.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from e5.network import attention


def install(patch: pytest.MonkeyPatch) -> list[int]:
    """Make packed attention call the operator on the CPU. The returned list gets the number of queries of each call."""
    calls: list[int] = []

    def operator(query: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, None, None, None, None]:
        calls.append(len(query))
        return flash_attention_forward(query, *arguments, **options), None, None, None, None

    patch.setattr(attention, "_has_kernel", lambda query: True)
    patch.setattr(torch.ops.aten, "_flash_attention_forward", SimpleNamespace(default=operator))
    return calls


def flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> Tensor:
    """query [T, H, D], key and value [S, K, D] → [T, H, D]. The argument names are those of the operator's schema.

    A query sees `window_size_left` keys before its own position and `window_size_right` after it (-1: all). The last
    query is at the last key's position.
    """
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32 and not dropout_p and not return_debug_mask
    assert is_causal == ((window_size_left, window_size_right) == (-1, 0))
    lengths_q, lengths_k = cum_seq_q.diff(), cum_seq_k.diff()
    assert int(lengths_q.max()) <= max_q and int(lengths_k.max()) <= max_k
    assert cum_seq_q[0] == cum_seq_k[0] == 0 and cum_seq_q[-1] <= len(query) and cum_seq_k[-1] <= len(key)
    out = torch.full_like(query, math.nan)
    group = query.shape[1] // key.shape[1]
    for text in range(len(cum_seq_q) - 1):
        queries = slice(int(cum_seq_q[text]), int(cum_seq_q[text + 1]))
        keys = slice(int(cum_seq_k[text]), int(cum_seq_k[text + 1]))
        q = query[queries].double().transpose(0, 1)
        k, v = (rows[keys].double().repeat_interleave(group, dim=1).transpose(0, 1) for rows in (key, value))
        distance = torch.arange(k.shape[1])[None, :] - torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if window_size_left >= 0:
            seen &= distance >= -window_size_left
        if window_size_right >= 0:
            seen &= distance <= window_size_right
        weights = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -math.inf).softmax(-1)
        out[queries] = (weights @ v).transpose(0, 1).to(out.dtype)
    return out
