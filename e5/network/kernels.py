"""Triton kernels for what a decoder layer does between its matrix products. Called through `e5.network.fused_ops`.

One program a row: each value is read once and written once, where torch's operators write every step out. Bytes by
token and layer of the flagship: 172 kB against 590 kB (docs/performance-notes.md). All compute in float32 and round
once at the end. `TRITON_INTERPRET=1` runs them on a CPU, slowly, which is how they are tested without a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from e5.network.linear import FLOAT8, FLOAT8_MAX, SMALLEST_SCALE, Rows, Rows8

GATE_BLOCK = 2048
HEADS = 8
"""Heads that one program turns."""


def add_rms_norm(hidden: Tensor, change: Tensor | None, weight: Tensor, epsilon: float, float8: bool) -> Rows:
    """As `e5.network.fused_ops.add_rms_norm`. hidden and change have contiguous rows."""
    tokens, width = hidden.shape
    assert hidden.is_contiguous() and (change is None or change.is_contiguous())
    out, scale = _output(tokens, width, hidden, float8)
    _add_rms_norm[(tokens,)](
        hidden,
        hidden if change is None else change,
        weight,
        out,
        scale,
        epsilon,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADD=change is not None,
        FLOAT8=float8,
        MAX=FLOAT8_MAX,
        SMALLEST=SMALLEST_SCALE,
        num_warps=_warps(width),
    )
    return Rows8(out, scale) if float8 else out


def rotate(heads: Tensor, turn: Tensor) -> None:
    """As `e5.network.fused_ops.rotate`: heads [T, H, d] may be a part of wider rows; turn float32 [T, d]."""
    tokens, count, width = heads.shape
    assert heads.stride(1) == width and heads.stride(2) == 1 and turn.is_contiguous()
    _rotate[(tokens, triton.cdiv(count, HEADS))](
        heads, turn, heads.stride(0), count, HALF=width // 2, BLOCK=triton.next_power_of_2(width // 2), HEADS=HEADS
    )


def gate(gate_up: Tensor, float8: bool) -> Rows:
    """As `e5.network.fused_ops.gate`."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    out, scale = _output(tokens, width, gate_up, float8)
    # Float8 needs the row's largest value before it can round: one program has the whole row.
    block = triton.next_power_of_2(width) if float8 else min(GATE_BLOCK, triton.next_power_of_2(width))
    _gate[(tokens, triton.cdiv(width, block))](
        gate_up,
        out,
        scale,
        WIDTH=width,
        BLOCK=block,
        FLOAT8=float8,
        MAX=FLOAT8_MAX,
        SMALLEST=SMALLEST_SCALE,
        num_warps=_warps(block),
    )
    return Rows8(out, scale) if float8 else out


def quantize(rows: Tensor) -> Rows8:
    """As `e5.network.linear.quantize`, in one pass. rows [T, K], contiguous."""
    tokens, width = rows.shape
    assert rows.is_contiguous()
    out, scale = _output(tokens, width, rows, True)
    block = triton.next_power_of_2(width)
    _quantize[(tokens,)](
        rows, out, scale, WIDTH=width, BLOCK=block, MAX=FLOAT8_MAX, SMALLEST=SMALLEST_SCALE, num_warps=_warps(block)
    )
    return Rows8(out, scale)


def _output(tokens: int, width: int, like: Tensor, float8: bool) -> tuple[Tensor, Tensor]:
    """Where a kernel writes: rows, and their scales; without float8 the second is a stand-in that nobody reads."""
    if not float8:
        out = torch.empty(tokens, width, device=like.device, dtype=like.dtype)
        return out, out
    out = torch.empty(tokens, width, device=like.device, dtype=FLOAT8)
    return out, torch.empty(tokens, 1, device=like.device, dtype=torch.float32)


def _warps(block: int) -> int:
    """16 numbers a thread, of 32 threads a warp: four loads of 8 bytes each in flight."""
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
    FLOAT8: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
) -> None:
    if FLOAT8:
        factor = tl.maximum(tl.max(tl.abs(values), axis=0) / MAX, SMALLEST)
        tl.store(scale + row, factor)
        # NaN has to arrive: what is not finite in the end is an error, and 448 would hide it.
        values = tl.maximum(values / factor, -MAX, propagate_nan=tl.PropagateNan.ALL)
        values = tl.minimum(values, MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + row * WIDTH + columns, values.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _add_rms_norm(
    hidden: tl.tensor,
    change: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    FLOAT8: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    values = tl.load(hidden + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(change + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
        # What the next layer adds to is what is kept: the norm is of the rounded sum, as in the stock module.
        kept = values.to(hidden.dtype.element_ty)
        tl.store(hidden + row * WIDTH + columns, kept, mask=mask)
        values = kept.to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, axis=0) / WIDTH + epsilon)
    values = values / length * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    _store(out, scale, row, columns, mask, values, WIDTH, FLOAT8, MAX, SMALLEST)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]  # of three counts, one kernel is enough
def _rotate(
    heads: tl.tensor,
    turn: tl.tensor,
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
    cos = tl.load(turn + row * 2 * HALF + column, mask=inside, other=0.0)
    sin = tl.load(turn + row * 2 * HALF + HALF + column, mask=inside, other=0.0)
    place = heads + row * stride + head * 2 * HALF + column
    mask = inside & (head < count)
    x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (x * cos - y * sin).to(heads.dtype.element_ty), mask=mask)
    tl.store(place + HALF, (y * cos + x * sin).to(heads.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(
    gate_up: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FLOAT8: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    left = tl.load(gate_up + row * 2 * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(gate_up + row * 2 * WIDTH + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    values = left / (1.0 + tl.exp(-left)) * right
    _store(out, scale, row, columns, mask, values, WIDTH, FLOAT8, MAX, SMALLEST)


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(
    rows: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX: tl.constexpr,
    SMALLEST: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    values = tl.load(rows + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    _store(out, scale, row, columns, mask, values, WIDTH, True, MAX, SMALLEST)
