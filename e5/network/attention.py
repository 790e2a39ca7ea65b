"""Packed attention: each text of a packed batch attends only to itself.

CUDA, 16-bit: torch's variable-length kernel. Elsewhere: dense attention over runs of equally long texts.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from e5.network.batches import COARSE_STEP, PackedBatch, bucket_size


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: PackedBatch,
    *,
    causal: bool,
    scale: float,
    sliding_window: int | None = None,
) -> Tensor:
    """query [T, H, D], key and value [T, K, D] with H a multiple of K → [T, H, D].

    `sliding_window` (only with `causal`): a token sees itself and the `sliding_window - 1` tokens before it.
    """
    window = sliding_window if sliding_window is not None and sliding_window < batch.max_seqlen else None
    if _has_kernel(query):
        window_size = (-1 if window is None else window - 1, 0) if causal else (-1, -1)
        return _varlen_kernel(query, key, value, batch.cu_seqlens, batch.max_seqlen, batch, scale, window_size)
    outputs = []
    for run in batch.runs:
        rows = slice(run.start, run.start + run.count * run.length)
        q, k, v = (_heads_first(tensor[rows], run.count) for tensor in (query, key, value))
        outputs.append(_dense(q, k, v, causal=causal, scale=scale, window=window).transpose(1, 2).flatten(0, 1))
    return _concatenate(outputs, len(query))


def last_token_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, *, scale: float, sliding_window: int | None = None
) -> Tensor:
    """Causal attention of each text's last token: query [N, H, D], key and value [T, K, D] → [N, H, D].

    `query` may have rows of filler after those of the texts; so has the result then.
    """
    if _has_kernel(query):
        cu_seqlens_q = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)  # one query per text
        window = sliding_window if sliding_window is not None and sliding_window < batch.max_seqlen else None
        window_size = (-1, -1) if window is None else (window - 1, 0)
        return _varlen_kernel(query, key, value, cu_seqlens_q, 1, batch, scale, window_size)
    outputs = []
    first = 0
    for run in batch.runs:
        rows = slice(run.start, run.start + run.count * run.length)
        seen = slice(0 if sliding_window is None else max(0, run.length - sliding_window), None)
        q = query[first : first + run.count].unsqueeze(2)  # [count, H, 1, D]
        k = _heads_first(key[rows], run.count)[:, :, seen]
        v = _heads_first(value[rows], run.count)[:, :, seen]
        outputs.append(_dense(q, k, v, causal=False, scale=scale).squeeze(2))
        first += run.count
    return _concatenate(outputs, len(query))


def _concatenate(outputs: list[Tensor], rows: int) -> Tensor:
    """One tensor of so many rows, with zeros for the batch's filler."""
    filler = rows - sum(map(len, outputs))
    if filler:
        outputs.append(outputs[0].new_zeros(filler, *outputs[0].shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's variable-length kernel computes the attention."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _is_ampere(device)


def _has_kernel(query: Tensor) -> bool:
    return has_kernel(query.device, query.dtype)


@cache
def _is_ampere(device: torch.device) -> bool:
    """The variable-length kernel is FlashAttention, which needs compute capability 8.0 or newer."""
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
    # The operator that torch.nn.attention.varlen.varlen_attn calls (torch 2.11 to 2.13). varlen_attn adds a Python
    # operator and allocates zeros on the device in each call: one launch in ten of a layer.
    output: Tensor = torch.ops.aten._flash_attention_forward.default(
        query,
        key,
        value,
        cu_seqlens_q,
        batch.cu_seqlens,
        max_seqlen_q,
        batch.max_seqlen,
        0.0,  # dropout_p
        window_size == (-1, 0),  # is_causal
        False,  # return_debug_mask
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
    windowed = causal and window is not None and window < length
    if not windowed and _matmul_is_faster(q, length, causal):
        return _matmul_attention(q, k, v, causal, scale)
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda:
        # The memory-efficient kernel needs equal head counts; the fallback would write L × L weights to memory.
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
        grouped = False
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=_window_mask(length, window, q.device) if windowed and window else None,
        is_causal=causal and not windowed,
        scale=scale,
        enable_gqa=grouped,
    )


def _matmul_is_faster(q: Tensor, length: int, causal: bool) -> bool:
    """Whether two matrix products beat SDPA, measured on two Zen 4 cores.

    SDPA's CPU kernel multiplies bfloat16 at float32's rate: 145 GFLOP/s, against 260 for matrix products that write the
    attention weights to memory. SDPA wins for few query rows, where the products' overhead dominates, and above about
    768 keys, where memory traffic does and a causal kernel skips half of the work.

    12 heads of 32, not causal: 96 to 200 tokens take 0.6 to 0.7 of SDPA's time in float32 and 0.7 to 0.9 in bfloat16;
    512 tokens take 1.1 in float32 and 0.6 in bfloat16.
    """
    if q.device.type != "cpu" or q.dtype == torch.float16:
        return False
    if q.dtype == torch.float32:
        return not causal and 96 <= q.shape[2] <= 250
    return (200 if causal else 96) <= q.shape[2] and length <= 768


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention as two matrix products and a softmax, one text at a time: its weights stay in the cache.

    In 16 bits a text is padded to a bucket size, because oneDNN generates code for each length: 2 ms and 1 MB.
    """
    count, heads, length, head_dim = q.shape
    key_heads = k.shape[1]
    padded = length if q.dtype == torch.float32 else bucket_size(length, COARSE_STEP)
    mask = torch.ones(padded, padded, dtype=torch.bool).triu_(1) if causal else None
    bias = q.new_zeros(padded, padded).masked_fill_(mask, float("-inf")) if mask is not None else None
    unused = q.new_empty(1, 1, 1)
    out = q.new_empty(count, length, heads, head_dim).transpose(1, 2)
    for text in range(count):
        query, key, value = q[text], k[text], v[text]
        if padded > length:  # pad() copies even if there is nothing to add
            query, key, value = (pad(tensor, (0, 0, 0, padded - length)) for tensor in (query, key, value))
        grouped = query.reshape(key_heads, heads // key_heads * padded, head_dim)
        weights = torch.baddbmm(unused, grouped, key.transpose(1, 2), beta=0, alpha=scale)
        weights = weights.view(heads, padded, padded)
        if bias is not None:
            weights.add_(bias)  # also hides the filler, which comes last
        else:
            weights[:, :, length:] = float("-inf")
        weights = weights.softmax(-1).view(key_heads, heads // key_heads * padded, padded)
        out[text] = (weights @ value).view(heads, padded, head_dim)[:, :length]
    return out


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Boolean [length, length]: True where a query sees a key."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    return mask.tril().triu(1 - window)
