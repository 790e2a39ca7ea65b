"""`e5.network.fused_ops.FusedOps` by torch's own operators."""

import torch
from torch import Tensor

from e5.network.linear import FLOAT8, Activations, Linear, quantize


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> Activations:
    if residual is not None:
        hidden.add_(residual)
    # A norm is one reduction: 0.3 ms for 4,096 × 256 float32 values, against 2.4 ms for torch's rms_norm (two cores).
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
    return cast((hidden * scale).mul_(weight).to(hidden.dtype), dtype)


def gather_cos_sin(cache: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    return cache.index_select(0, position_ids).to(dtype)


def apply_rope(heads: Tensor, cos_sin: Tensor) -> None:
    x, y = heads.chunk(2, dim=-1)
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    rotated_x = torch.addcmul(x * cos, y, sin, value=-1)
    y.copy_(torch.addcmul(y * cos, x, sin))
    x.copy_(rotated_x)


def silu_and_mul(gate_up: Tensor, dtype: torch.dtype) -> Activations:
    gate, up = gate_up.chunk(2, dim=-1)
    return cast(torch.nn.functional.silu(gate).mul_(up), dtype)


def cast(rows: Tensor, dtype: torch.dtype) -> Activations:
    return Activations(*quantize(rows)) if dtype == FLOAT8 else Activations(rows)


def add_layer_norm(rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.layer_norm(rows.add_(residual), weight.shape, weight, bias, eps)


def dense_add_norm(dense: Linear, rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.layer_norm(dense.linear_add(rows, residual), weight.shape, weight, bias, eps)
