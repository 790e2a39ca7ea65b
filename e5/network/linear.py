"""Linear layers without a bias: weights in the activations' dtype, or in float8 with a scale for each row.

Float8 is e4m3: 4 bits of exponent, 3 of mantissa, up to 448. A weight has one scale for each output channel, made when
it is loaded; activations have one for each token, made as they are computed (`e5.network.fused_ops`). Products are
summed in float32. Accuracy and speed: docs/benchmarks.md.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
SMALLEST_SCALE = 1e-12
"""Keeps a row of zeros from being divided by zero."""


class Rows8(NamedTuple):
    """Activations in float8: values [T, K], and the float32 scale [T, 1] that each row is to be multiplied by."""

    values: Tensor
    scale: Tensor


Rows = Tensor | Rows8


class Destination(Protocol):
    """Where a tensor of a checkpoint belongs: a parameter, or a part of one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def nbytes(self) -> int: ...

    def copy_(self, tensor: Tensor, /) -> object: ...


class Linear(Protocol):
    """A matrix [N, K]: rows [T, K] → [T, N] in the activations' dtype."""

    def __call__(self, rows: Rows) -> Tensor: ...

    def part(self, start: int, stop: int) -> "Linear":
        """The layer of the output channels from `start` to `stop`; a view."""

    def destination(self, start: int, stop: int) -> Destination:
        """Where the weights of those channels go."""


@dataclass(frozen=True)
class Dense:
    """weight: [N, K]."""

    weight: Tensor

    def __call__(self, rows: Rows) -> Tensor:
        assert isinstance(rows, Tensor)
        return torch.nn.functional.linear(rows, self.weight)

    def part(self, start: int, stop: int) -> "Dense":
        return Dense(self.weight[start:stop])

    def destination(self, start: int, stop: int) -> Destination:
        return self.weight[start:stop]


@dataclass(frozen=True)
class Float8:
    """weight: float8 [N, K]; scale: float32 [1, N]; `dtype`: that of the results."""

    weight: Tensor
    scale: Tensor
    dtype: torch.dtype

    def __call__(self, rows: Rows) -> Tensor:
        assert isinstance(rows, Rows8)
        if not rows.values.is_cuda:
            # CPUs have no such product: the same one in float32, for tests and for figures of accuracy.
            product = rows.values.float() @ self.weight.float().T
            return (product * rows.scale * self.scale).to(self.dtype)
        # Without fast accumulation the matrix units add up in fewer bits than float32 has for 128 products at most,
        # at some cost in speed; the error of the operands' three bits of mantissa is far larger.
        return torch._scaled_mm(
            rows.values,
            self.weight.T,
            scale_a=rows.scale,
            scale_b=self.scale,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )

    def part(self, start: int, stop: int) -> "Float8":
        return Float8(self.weight[start:stop], self.scale[:, start:stop].contiguous(), self.dtype)

    def destination(self, start: int, stop: int) -> Destination:
        return _Float8Destination(self.weight[start:stop], self.scale[0, start:stop])


@dataclass(frozen=True)
class _Float8Destination:
    weight: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def copy_(self, tensor: Tensor) -> None:
        quantized = quantize(tensor.to(self.device))
        self.weight.copy_(quantized.values)
        self.scale.copy_(quantized.scale[:, 0])


def empty(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype, float8: bool) -> Dense | Float8:
    """A layer whose weights are still to be put in place. `dtype`: that of the activations."""
    if not float8:
        return Dense(torch.empty(outputs, inputs, device=device, dtype=dtype))
    weight = torch.empty(outputs, inputs, device=device, dtype=FLOAT8)
    return Float8(weight, torch.empty(1, outputs, device=device), dtype)


def quantize(rows: Tensor) -> Rows8:
    """[T, K] of any float dtype → float8 by rows, each scaled so that its largest value becomes 448."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1, keepdim=True).div_(FLOAT8_MAX).clamp_(min=SMALLEST_SCALE)
    return Rows8((rows / scale).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), scale)


def select(rows: Rows, index: Tensor) -> Rows:
    """The rows at `index` int64 [N]."""
    if isinstance(rows, Tensor):
        return rows.index_select(0, index)
    # Gathered as bytes: indexing is not written for float8.
    values = rows.values.view(torch.uint8).index_select(0, index).view(FLOAT8)
    return Rows8(values, rows.scale.index_select(0, index))
