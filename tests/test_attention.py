"""Packed attention against the textbook formula, one text and one head at a time, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from e5 import attention
from e5.attention import last_token_attention, packed_attention
from e5.batches import pack

W = tuple[int, int]
LENGTHS = [7, 7, 7, 5, 3, 3, 1, 1, 130]
LONGER = [230, 230, 210, 61, 61, 16, 16]


def textbook(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], causal: bool, window: int | None) -> Tensor:
    """[T, H, D] from softmax(q·k/√D) v, spelled out."""
    out = torch.zeros_like(query, dtype=torch.float64)
    group = query.shape[1] // key.shape[1]
    start = 0
    for length in lengths:
        for head in range(query.shape[1]):
            for i in range(start, start + length):
                last = i if causal else start + length - 1
                first = start if window is None else max(start, i - window + 1)
                seen = slice(first, last + 1)
                k, v = key[seen, head // group].double(), value[seen, head // group].double()
                weights = torch.softmax(k @ query[i, head].double() / math.sqrt(query.shape[2]), dim=0)
                out[i, head] = weights @ v
        start += length
    return out


def inputs(
    heads: int, key_heads: int, dtype: torch.dtype, lengths: list[int] = LENGTHS
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, count, 16, dtype=torch.float64) * 2 for count in (heads, key_heads, key_heads))
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 4), (True, 7), (True, 4096)])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_matches_the_textbook(
    heads: int, key_heads: int, causal: bool, window: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    query, key, value = inputs(heads, key_heads, dtype)
    batch = pack([[0] * length for length in LENGTHS])
    got = packed_attention(query, key, value, batch, causal=causal, scale=0.25, window=window)
    want = textbook(query, key, value, LENGTHS, causal, window)
    assert got.shape == want.shape and got.dtype == dtype
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < tolerance


@pytest.mark.parametrize("few_shapes", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_bfloat16_products_match_the_textbook(
    heads: int, key_heads: int, causal: bool, few_shapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[int, int]] = []
    products = attention._by_products

    def spy(q: Tensor, *rest: Any) -> Tensor:
        called.append((q.shape[0], q.shape[2]))
        return products(q, *rest)

    monkeypatch.setattr(attention, "_by_products", spy)
    query, key, value = inputs(heads, key_heads, torch.bfloat16, LONGER)
    batch = pack([[0] * length for length in LONGER], few_shapes=few_shapes)
    filler = len(batch.input_ids) - len(query)
    assert (filler > 0) == few_shapes
    q, k, v = (torch.cat([one, torch.full((filler, *one.shape[1:]), 1e4).to(one)]) for one in (query, key, value))
    got = packed_attention(q, k, v, batch, causal=causal, scale=0.25)
    want = textbook(query, key, value, LONGER, causal, None)
    assert len(got) == len(batch.input_ids)
    assert torch.linalg.norm(got[: len(want)] - want) / torch.linalg.norm(want) < 2e-2
    # 230 and 210 tokens become 256 and 224 by filler, which no token of a text sees.
    alone = [(1, 256), (1, 256), (1, 224)]
    assert called == (alone if few_shapes and causal else [(2, 230), (1, 210)]), "the way that this test is about"


@pytest.mark.parametrize("window", [None, 4, 7, 4096])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_the_last_tokens_alone_get_what_they_get_among_all(heads: int, key_heads: int, window: int | None) -> None:
    query, key, value = inputs(heads, key_heads, torch.float32)
    batch = pack([[0] * length for length in LENGTHS])
    last = batch.cu_seqlens[1:].long() - 1
    got = last_token_attention(query[last], key, value, batch, scale=0.25, window=window)
    want = textbook(query, key, value, LENGTHS, True, window)[last]
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 1e-6


def _kernel(group_heads_itself: bool) -> Any:
    """varlen_attn as torch 2.11 (which groups heads itself) or 2.13 has it, computed by the textbook."""

    def compute(
        query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float, window: W
    ) -> Tensor:
        assert cu_q.dtype == cu_k.dtype == torch.int32 and scale == 0.25
        lengths_q, lengths_k = cu_q.diff().tolist(), cu_k.diff().tolist()
        # As the kernel: a query sees `left` keys before and `right` after it (-1: all), the ends of both aligned.
        causal, reach = window[1] == 0, None if window[0] == -1 else window[0] + 1
        rows = []
        for text, (few, many) in enumerate(zip(lengths_q, lengths_k, strict=True)):
            padded = torch.zeros(many, *query.shape[1:], dtype=query.dtype)
            padded[many - few :] = query[int(cu_q[text]) : int(cu_q[text + 1])]
            keys, values = (t[int(cu_k[text]) : int(cu_k[text + 1])] for t in (key, value))
            rows.append(textbook(padded, keys, values, [many], causal, reach)[many - few :])
        return torch.cat(rows)

    def torch_2_11(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: W,
    ) -> Tensor:
        assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        return compute(q, k, v, cu_q, cu_k, scale, window_size)

    def torch_2_13(q: Tensor, k: Tensor, *args: Any, enable_gqa: bool = False, **options: Any) -> Tensor:
        assert enable_gqa or q.shape[1] == k.shape[1]
        return torch_2_11(q, k, *args, **options)

    return torch_2_11 if group_heads_itself else torch_2_13


@pytest.mark.parametrize("group_heads_itself", [True, False], ids=["torch 2.11", "torch 2.13"])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 4), (True, 7), (True, 4096)])
def test_the_kernel_is_asked_for_the_right_thing(
    causal: bool, window: int | None, group_heads_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_has_kernel", lambda query: True)
    monkeypatch.setattr(varlen, "varlen_attn", _kernel(group_heads_itself))
    attention._varlen.cache_clear()
    query, key, value = inputs(4, 2, torch.float32)
    batch = pack([[0] * length for length in LENGTHS])
    want = textbook(query, key, value, LENGTHS, causal, window)
    got = packed_attention(query, key, value, batch, causal=causal, scale=0.25, window=window)
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 1e-6
    if causal:
        last = batch.cu_seqlens[1:].long() - 1
        got = last_token_attention(query[last], key, value, batch, scale=0.25, window=window)
        assert torch.linalg.norm(got - want[last]) / torch.linalg.norm(want[last]) < 1e-6
    attention._varlen.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_variable_length_kernel_matches_the_dense_runs(
    causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    query, key, value = inputs(4, 2, dtype)
    batch = pack([[0] * length for length in LENGTHS])
    want = packed_attention(query.float(), key.float(), value.float(), batch, causal=causal, scale=0.25, window=window)
    device = torch.device("cuda")
    got = packed_attention(
        query.to(device),
        key.to(device),
        value.to(device),
        batch.to(device),
        causal=causal,
        scale=0.25,
        window=window,
    )
    assert torch.linalg.norm(got.cpu().float() - want) / torch.linalg.norm(want) < 2e-2
    if causal:
        last = batch.cu_seqlens[1:].long() - 1
        tail = last_token_attention(
            query[last].to(device), key.to(device), value.to(device), batch.to(device), scale=0.25, window=window
        )
        assert torch.linalg.norm(tail.cpu().float() - want[last]) / torch.linalg.norm(want[last]) < 2e-2
