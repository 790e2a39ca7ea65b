"""Triton kernels of decoder and encoder layers: `e5.network.fused_ops.FusedOps` on CUDA.

One program per row reads and writes each value once; torch's operators write every intermediate result to memory. Per
token and layer of the flagship that is 172 kB instead of 590 kB (docs/performance-notes.md). All kernels compute in
float32 and round once at the end. Without a GPU, `TRITON_INTERPRET=1` runs them on a CPU, slowly, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from e5.network.linear import FLOAT8, FLOAT8_MAX, SMALLEST_SCALE, Activations, Linear

GATE_BLOCK = 2048
HEADS = 8
"""Heads that one program rotates."""
MAX, SMALLEST = tl.constexpr(FLOAT8_MAX), tl.constexpr(SMALLEST_SCALE)


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> Activations:
    """hidden and residual are contiguous."""
    tokens, width = hidden.shape
    assert hidden.is_contiguous() and (residual is None or residual.is_contiguous())
    out = _empty(tokens, width, hidden.device, dtype)
    _add_rms_norm[(tokens,)](
        hidden,
        hidden if residual is None else residual,
        weight,
        out.values,
        _scale(out),
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADD=residual is not None,
        num_warps=_warps(width),
    )
    return out


def gather_cos_sin(cache: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Stays in float32, in which `apply_rope` computes."""
    return cache.index_select(0, position_ids)


def apply_rope(heads: Tensor, cos_sin: Tensor) -> None:
    """cos_sin: float32, contiguous."""
    tokens, count, head_dim = heads.shape
    assert heads.stride(1) == head_dim and heads.stride(2) == 1 and cos_sin.is_contiguous()
    half = head_dim // 2
    _apply_rope[(tokens, triton.cdiv(count, HEADS))](
        heads, cos_sin, heads.stride(0), count, HALF=half, BLOCK=triton.next_power_of_2(half), HEADS=HEADS
    )


def silu_and_mul(gate_up: Tensor, dtype: torch.dtype) -> Activations:
    """gate_up is contiguous."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    out = _empty(tokens, width, gate_up.device, dtype)
    # Float8 needs the maximum of the row before it can round, so one program handles the whole row.
    block = triton.next_power_of_2(width) if dtype == FLOAT8 else min(GATE_BLOCK, triton.next_power_of_2(width))
    _silu_and_mul[(tokens, triton.cdiv(width, block))](
        gate_up, out.values, _scale(out), WIDTH=width, BLOCK=block, num_warps=_warps(block)
    )
    return out


def cast(rows: Tensor, dtype: torch.dtype) -> Activations:
    """To float8 as `e5.network.linear.quantize`, in one pass. rows is contiguous."""
    if dtype != FLOAT8:
        return Activations(rows)
    tokens, width = rows.shape
    assert rows.is_contiguous()
    out = _empty(tokens, width, rows.device, FLOAT8)
    block = triton.next_power_of_2(width)
    _quantize[(tokens,)](rows, out.values, _scale(out), WIDTH=width, BLOCK=block, num_warps=_warps(block))
    return out


def add_layer_norm(rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """rows and residual are contiguous. Their sum is not rounded."""
    tokens, width = rows.shape
    assert rows.is_contiguous() and residual.is_contiguous()
    out = torch.empty_like(rows)
    _add_layer_norm[(tokens,)](
        rows,
        residual,
        weight,
        bias,
        out,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_warps(width),
    )
    return out


def dense_add_norm(dense: Linear, rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """residual is contiguous."""
    return add_layer_norm(dense.linear(rows), residual, weight, bias, eps)


def _empty(tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> Activations:
    scale = torch.empty(tokens, 1, device=device, dtype=torch.float32) if dtype == FLOAT8 else None
    return Activations(torch.empty(tokens, width, device=device, dtype=dtype), scale)


def _scale(out: Activations) -> Tensor:
    """The scale argument of a kernel. Unless `out` is float8, a kernel does not use it but needs some tensor there."""
    return out.values if out.scale is None else out.scale


def _warps(block: int) -> int:
    """One warp (32 threads) per 512 values: 16 values a thread, four loads of 8 bytes in flight."""
    return max(1, min(16, block // 512))


@triton.jit  # type: ignore[untyped-decorator]
def _store(
    out: tl.tensor,
    scale: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
    values: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    if out.dtype.element_ty == tl.float8e4nv:  # decided at compile time
        factor = tl.maximum(tl.max(tl.abs(values), axis=0) / MAX, SMALLEST)
        tl.store(scale + row, factor)
        # Propagate NaN: clamped to 448 it would hide, and the check for finite vectors would miss it.
        values = tl.maximum(values / factor, -MAX, propagate_nan=tl.PropagateNan.ALL)
        values = tl.minimum(values, MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + row * WIDTH + columns, values.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _add_rms_norm(
    hidden: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    values = tl.load(hidden + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(residual + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
        # Normalise the rounded sum, which is also what the next layer adds to, as the stock module does.
        rounded = values.to(hidden.dtype.element_ty)
        tl.store(hidden + row * WIDTH + columns, rounded, mask=mask)
        values = rounded.to(tl.float32)
    rms = tl.sqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    values = values / rms * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    _store(out, scale, row, columns, mask, values, WIDTH)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]  # one kernel for the three head counts
def _apply_rope(
    heads: tl.tensor,
    cos_sin: tl.tensor,
    stride: tl.tensor,
    count: tl.tensor,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < HALF
    cos = tl.load(cos_sin + row * 2 * HALF + column, mask=inside, other=0.0)
    sin = tl.load(cos_sin + row * 2 * HALF + HALF + column, mask=inside, other=0.0)
    pointer = heads + row * stride + head * 2 * HALF + column
    mask = inside & (head < count)
    x = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(pointer + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointer, (x * cos - y * sin).to(heads.dtype.element_ty), mask=mask)
    tl.store(pointer + HALF, (y * cos + x * sin).to(heads.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_and_mul(
    gate_up: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    values = gate / (1.0 + tl.exp(-gate)) * up
    _store(out, scale, row, columns, mask, values, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(
    rows: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    values = tl.load(rows + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    _store(out, scale, row, columns, mask, values, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _add_layer_norm(
    rows: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    values = tl.load(rows + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(residual + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    centered = tl.where(mask, values - tl.sum(values, axis=0) / WIDTH, 0.0)
    values = centered / tl.sqrt(tl.sum(centered * centered, axis=0) / WIDTH + eps)
    values *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, values.to(out.dtype.element_ty), mask=mask)
