"""The operations of a layer between its matrix products.

In a decoder: norm, rotary embedding, SwiGLU, cast to float8. In an encoder: norm, with the product before it, because
the residual between the two can be fused with either. An encoder's GELU is not here: on CUDA, torch's linear layer adds
the bias in cuBLASLt's epilogue, so torch's GELU is already the only pass. (cuBLASLt's own GELU is the tanh
approximation, which these models were not trained with.)

On CUDA each is one Triton kernel, one pass over memory (`e5.network.kernels`). Elsewhere, and without Triton, torch's
operators compute them (`e5.network.torch_ops`). Both compute in float32 from 16-bit inputs and round once, except that
torch's rotary embedding, SwiGLU and residual additions round after each operation, as stock transformers do.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from e5.network import torch_ops
from e5.network.linear import Activations, Linear

log = logging.getLogger(__name__)


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

    def add_layer_norm(self, rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """The layer norm of rows + residual, all [T, D]. May overwrite `rows`."""

    def dense_add_norm(
        self, dense: Linear, rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        """rows [T, K], residual [T, D] → the layer norm [T, D] of dense(rows) + residual."""


def for_device(device: torch.device) -> FusedOps:
    """The Triton kernels on CUDA, where Triton is installed; otherwise torch's operators."""
    if device.type != "cuda":
        return torch_ops
    try:
        from e5.network import kernels
    except ImportError:  # Triton comes with torch's CUDA builds for Linux only
        return torch_ops
    return kernels


def compiled(ops: FusedOps, call_each: Callable[[FusedOps], None]) -> FusedOps:
    """Call each operation once: Triton compiles at the first call, half a second each. Returns `ops`.

    If that fails (no C compiler for the launchers, say), logs a warning and returns torch's operators instead.
    """
    try:
        call_each(ops)
    except Exception as error:  # Triton passes on errors of its compilers, the C compiler and the driver
        log.warning("fused kernels could not be compiled (%s): using torch's operators, which are slower", error)
        return torch_ops
    return ops
