"""The operations of a decoder layer between its matrix products: norm, rotary embedding, SwiGLU, cast to float8.

On CUDA each is one Triton kernel, one pass over memory (`e5.network.kernels`). Elsewhere, and without Triton, torch's
operators compute them (`e5.network.torch_ops`). Both compute in float32 from 16-bit inputs and round once, except that
torch's rotary embedding and SwiGLU round after each operation, as stock transformers do.
"""

from typing import Protocol

import torch
from torch import Tensor

from e5.network import torch_ops
from e5.network.linear import Activations


class FusedOps(Protocol):
    """`dtype`: of the result; the `input_dtype` of the layer that reads it. Float8 rows get a scale each."""

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> Activations:
        """hidden [T, D] += residual [T, D] in place; → hidden / √(mean of squares + eps) × weight [T, D]."""

    def gather_cos_sin(self, cache: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows [T, d] of the float32 cache [P, d] at each token's position, for `apply_rope` to heads in `dtype`.

        Cosines in the first half of a row, sines in the second.
        """

    def apply_rope(self, heads: Tensor, cos_sin: Tensor) -> None:
        """Rotate heads [T, H, d] in place by cos_sin [T, d]: (x, y) → (x cos − y sin, y cos + x sin).

        x and y are the two halves of a head: the layout of weights published for transformers. `heads` may be a slice
        of wider rows.
        """

    def silu_and_mul(self, gate_up: Tensor, dtype: torch.dtype) -> Activations:
        """gate_up [T, 2F] → silu(first half) × second half, [T, F]."""

    def cast(self, rows: Tensor, dtype: torch.dtype) -> Activations:
        """rows [T, K] in `dtype`, either their own or float8."""


def for_device(device: torch.device) -> FusedOps:
    """The Triton kernels on CUDA, where Triton is installed; otherwise torch's operators."""
    if device.type != "cuda":
        return torch_ops
    try:
        from e5.network import kernels
    except ImportError:  # Triton comes with torch's CUDA builds for Linux only
        return torch_ops
    return kernels
