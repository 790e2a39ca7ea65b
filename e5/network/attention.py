"""Packed attention: every text of a packed row attends to itself alone.

CUDA, 16-bit: torch's variable-length kernel. Elsewhere: dense attention over runs of equally long texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from e5.network.batches import PackedBatch, Run, bucket_size

LONG = 200
"""Tokens from which a text is worth a computation of its own."""


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: PackedBatch,
    *,
    causal: bool,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """query [T, H, D], key and value [T, K, D] with H a multiple of K → [T, H, D].

    `window`: a token sees itself and the `window - 1` before it (only with `causal`); None: no such limit.
    """
    window = window if window is not None and window < batch.max_seqlen else None
    if _has_kernel(query):
        span = (-1 if window is None else window - 1, 0) if causal else (-1, -1)
        return _varlen_kernel(query, key, value, batch.cu_seqlens, batch.max_seqlen, batch, scale, span)
    outputs = []
    for block in _blocks(batch, causal):
        rows = slice(block.start, block.start + block.count * block.length)
        q, k, v = (tensor[rows] for tensor in (query, key, value))
        if block.extent > block.length:  # pad() copies also where there is nothing to add
            filler = (0, 0, 0, 0, 0, block.extent - block.length)  # after the last row of the first dimension
            q, k, v = (pad(tensor, filler) for tensor in (q, k, v))
        q, k, v = (_heads_first(tensor, block.count) for tensor in (q, k, v))
        out = _dense(q, k, v, causal=causal, scale=scale, window=window).transpose(1, 2).flatten(0, 1)
        outputs.append(out[: block.count * block.length])
    return _joined(outputs, len(query))


def last_token_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, *, scale: float, window: int | None = None
) -> Tensor:
    """Causal attention of each text's last token: query [N, H, D], key and value [T, K, D] → [N, H, D].

    Rows of `query` beyond the texts are filler; so are theirs of the result.
    """
    if _has_kernel(query):
        ones = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        span = (-1, -1) if window is None or window >= batch.max_seqlen else (window - 1, 0)
        return _varlen_kernel(query, key, value, ones, 1, batch, scale, span)
    outputs = []
    first = 0
    for run in batch.runs:
        rows = slice(run.start, run.start + run.count * run.length)
        seen = slice(0 if window is None else max(0, run.length - window), None)
        q = query[first : first + run.count].unsqueeze(2)  # [count, H, 1, D]
        k, v = (_heads_first(tensor[rows], run.count)[:, :, seen] for tensor in (key, value))
        outputs.append(_dense(q, k, v, causal=False, scale=scale).squeeze(2))
        first += run.count
    return _joined(outputs, len(query))


@dataclass(frozen=True)
class _Block(Run):
    """A run, or a text of one, over `extent` rows: its `length`, and for a single text some of filler."""

    extent: int


def _blocks(batch: PackedBatch, causal: bool) -> Iterator[_Block]:
    """What to compute at a time: the runs; of long texts, where shapes should be few, each by itself.

    Filler after a text makes its length one of few: no token of it sees the filler, whose own results are dropped.
    """
    for run in batch.runs:
        if not (batch.bucketed and causal and run.length >= LONG):
            yield _Block(run.start, run.count, run.length, run.length)
            continue
        for start in range(run.start, run.start + run.count * run.length, run.length):
            yield _Block(start, 1, run.length, bucket_size(run.length))


def _joined(outputs: list[Tensor], rows: int) -> Tensor:
    """All of them in one tensor of so many rows; what no text has is zero."""
    filler = rows - sum(map(len, outputs))
    if filler:
        outputs.append(outputs[0].new_zeros(filler, *outputs[0].shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention runs in torch's variable-length kernel."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _is_ampere(device)


def _has_kernel(query: Tensor) -> bool:
    return has_kernel(query.device, query.dtype)


@cache
def _is_ampere(device: torch.device) -> bool:
    """FlashAttention, which is behind the variable-length kernel, needs compute capability 8.0 or newer."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    batch: PackedBatch,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    # What torch.nn.attention.varlen.varlen_attn (torch 2.11 to 2.13) calls, without what it adds: an operator written
    # in Python, and zeros made on the device for each call, which is one launch in ten of a layer.
    output: Tensor = torch.ops.aten._flash_attention_forward.default(
        query,
        key,
        value,
        cu_seqlens_q,
        batch.cu_seqlens,
        max_seqlen_q,
        batch.max_seqlen,
        0.0,  # dropout
        window_size == (-1, 0),
        False,  # no mask for debugging
        scale=scale,
        window_size_left=window_size[0],
        window_size_right=window_size[1],
    )[0]
    return output


def _heads_first(rows: Tensor, count: int) -> Tensor:
    """[count · length, heads, D] → [count, heads, length, D], a view."""
    return rows.view(count, -1, *rows.shape[1:]).transpose(1, 2)


def _dense(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, window: int | None = None) -> Tensor:
    """q [count, H, Q, D], k and v [count, K, L, D] → [count, H, Q, D]; with `causal`, Q equals L."""
    length = k.shape[2]
    banded = causal and window is not None and window < length
    if not banded and _products_are_faster(q, length):
        return _by_products(q, k, v, causal, scale)
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda:
        # The memory-efficient kernel takes equal head counts only; without it L × L weights are written out.
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
        grouped = False
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=_band(length, window, q.device) if banded and window else None,
        is_causal=causal and not banded,
        scale=scale,
        enable_gqa=grouped,
    )


def _products_are_faster(q: Tensor, length: int) -> bool:
    """SDPA's CPU kernel multiplies bfloat16 at float32's rate: 145 GFLOP/s on two Zen 4 cores, where matrix products
    that write the weights out reach 260. Below some 200 query rows their overhead, above some 768 keys the memory
    traffic of the weights and the half that a causal kernel skips, turn the comparison round."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] >= 200 and length <= 768


def _by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention as two matrix products and a softmax. One text at a time: the weights stay in cache, and products of
    a batch of texts would have code generated for each count of them (`batches.rounded`)."""
    count, heads, rows, width = q.shape
    groups, length = k.shape[1], k.shape[2]
    hidden = torch.ones(rows, length, dtype=torch.bool).triu_(1) if causal else None
    bias = q.new_zeros(rows, length).masked_fill_(hidden, float("-inf")) if hidden is not None else None
    out = q.new_empty(count, rows, heads, width).transpose(1, 2)
    for text in range(count):
        grouped = (q[text] * scale).reshape(groups, heads // groups * rows, width)
        weights = (grouped @ k[text].transpose(-1, -2)).view(heads, rows, length)
        weights = weights.add_(bias) if bias is not None else weights
        weights = weights.softmax(-1).view(groups, heads // groups * rows, length)
        out[text] = (weights @ v[text]).view(heads, rows, width)
    return out


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Boolean [length, length]: True where a query may see a key of its window."""
    allowed = torch.ones(length, length, dtype=torch.bool, device=device)
    return allowed.tril().triu(1 - window)
