"""Packed attention against the textbook formula, computed one text and one head at a time in float64."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from e5.network import attention
from e5.network.attention import last_token_attention, packed_attention
from e5.network.batches import COARSE_STEP
from tests import flash
from tests.token_ids import pack

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
    got = packed_attention(query, key, value, batch, causal=causal, scale=0.25, sliding_window=window)
    want = textbook(query, key, value, LENGTHS, causal, window)
    assert got.shape == want.shape and got.dtype == dtype
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < tolerance


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_matmul_attention_matches_the_textbook(
    heads: int, key_heads: int, causal: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[int, int]] = []
    products: set[tuple[int, ...]] = set()
    matmul_attention, baddbmm = attention._matmul_attention, torch.baddbmm

    def spy(q: Tensor, *rest: Any) -> Tensor:
        called.append((q.shape[0], q.shape[2]))
        return matmul_attention(q, *rest)

    def watch(nothing: Tensor, query: Tensor, key: Tensor, **options: Any) -> Tensor:
        products.add(tuple(key.shape))
        return baddbmm(nothing, query, key, **options)

    monkeypatch.setattr(attention, "_matmul_attention", spy)
    monkeypatch.setattr(torch, "baddbmm", watch)
    query, key, value = inputs(heads, key_heads, dtype, LONGER)
    batch = pack([[0] * length for length in LONGER], bucket_step=COARSE_STEP)
    filler = len(batch.input_ids) - len(query)
    assert filler > 0
    q, k, v = (torch.cat([rows, torch.full((filler, *rows.shape[1:]), 1e4).to(rows)]) for rows in (query, key, value))
    got = packed_attention(q, k, v, batch, causal=causal, scale=0.25)
    want = textbook(query, key, value, LONGER, causal, None)
    assert len(got) == len(batch.input_ids)
    assert torch.linalg.norm(got[: len(want)] - want) / torch.linalg.norm(want) < tolerance
    sixteen = dtype == torch.bfloat16
    assert called == ([] if causal and not sixteen else [(2, 230), (1, 210)]), "took another path"
    # In 16 bits, texts of 230 and 210 tokens are padded to 256 and 224 with filler, which no token of a text sees.
    lengths = [256, 224] if sixteen else [230, 210]
    assert products == ({(key_heads, 16, length) for length in lengths} if called else set())


@pytest.mark.parametrize(("length", "causal"), [(97, False), (201, False), (201, True)])
def test_filler_of_matmul_attention_has_no_weight(length: int, causal: bool) -> None:
    """Queries of zero weigh all keys alike, the filler's too if it counted: 128 or 224 keys instead of the text's."""
    query, key = torch.zeros(2, length, 4, 16, dtype=torch.bfloat16)
    got = packed_attention(query, key, torch.ones_like(key), pack([[0] * length]), causal=causal, scale=0.25)
    assert got.shape == query.shape and (got - 1).abs().max() < 0.02


@pytest.mark.parametrize("window", [None, 4, 7, 4096])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_last_token_attention_matches_the_textbook(heads: int, key_heads: int, window: int | None) -> None:
    query, key, value = inputs(heads, key_heads, torch.float32)
    batch = pack([[0] * length for length in LENGTHS])
    last = batch.cu_seqlens[1:].long() - 1
    got = last_token_attention(query[last], key, value, batch, scale=0.25, sliding_window=window)
    want = textbook(query, key, value, LENGTHS, True, window)[last]
    assert got.shape == want.shape
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 1e-6


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 4), (True, 7), (True, 4096)])
def test_the_kernel_s_arguments_give_the_textbook_s_result(
    causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = flash.install(monkeypatch)
    query, key, value = inputs(4, 2, torch.float32)
    batch = pack([[0] * length for length in LENGTHS])
    want = textbook(query, key, value, LENGTHS, causal, window)
    got = packed_attention(query, key, value, batch, causal=causal, scale=0.25, sliding_window=window)
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 1e-6
    if causal:
        last = batch.cu_seqlens[1:].long() - 1
        got = last_token_attention(query[last], key, value, batch, scale=0.25, sliding_window=window)
        assert torch.linalg.norm(got - want[last]) / torch.linalg.norm(want[last]) < 1e-6
    assert calls == [len(query), len(LENGTHS)][: len(calls)] and len(calls) == (2 if causal else 1)


def test_the_stand_in_has_the_operator_s_signature() -> None:
    """The same argument names in the same order."""
    schema = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in schema.arguments]
    stand_in = list(inspect.signature(flash.flash_attention_forward).parameters)
    assert names[: len(stand_in)] == stand_in
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    assert positional == stand_in[:10]


@pytest.mark.gpu
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_variable_length_kernel_matches_the_dense_runs(
    causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    query, key, value = inputs(4, 2, dtype)
    batch = pack([[0] * length for length in LENGTHS])
    want = packed_attention(
        query.float(), key.float(), value.float(), batch, causal=causal, scale=0.25, sliding_window=window
    )
    device = torch.device("cuda")
    got = packed_attention(
        query.to(device),
        key.to(device),
        value.to(device),
        batch.to(device),
        causal=causal,
        scale=0.25,
        sliding_window=window,
    )
    assert torch.linalg.norm(got.cpu().float() - want) / torch.linalg.norm(want) < 2e-2
    if causal:
        last = batch.cu_seqlens[1:].long() - 1
        tail = last_token_attention(
            query[last].to(device),
            key.to(device),
            value.to(device),
            batch.to(device),
            scale=0.25,
            sliding_window=window,
        )
        assert torch.linalg.norm(tail.cpu().float() - want[last]) / torch.linalg.norm(want[last]) < 2e-2
