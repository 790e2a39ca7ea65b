"""Linear layers: weights in the activations' dtype, and maybe a bias; or in float8, with a scale per output channel.

Float8 is e4m3: 4 exponent bits, 3 mantissa bits, maximum 448. Weight scales are computed at load time, one per output
channel; activation scales are computed on the fly, one per token (`e5.network.fused_ops`). Products accumulate in
float32. Accuracy and speed: docs/benchmarks.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
SMALLEST_SCALE = 1e-12
"""Lower bound of a scale, so that a row of zeros is not divided by zero."""


class Activations(NamedTuple):
    """The input of a linear layer: values [T, K] and, for float8, the float32 scale [T, 1] to multiply each row by."""

    values: Tensor
    scale: Tensor | None = None


class Destination(Protocol):
    """A parameter, or a part of one, that a checkpoint's tensor is copied into."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def nbytes(self) -> int: ...

    def copy_(self, tensor: Tensor, /) -> object: ...


@dataclass
class Linear:
    """Activations [T, K] → [T, N] in `dtype`. weight: [N, K] in `dtype`, or in float8 with scale float32 [1, N].

    bias: [N] in `dtype`, never with float8. prepacked: whether `weight` has oneDNN's layout (`prepack`).
    """

    weight: Tensor
    dtype: torch.dtype
    scale: Tensor | None = None
    bias: Tensor | None = None
    prepacked: bool = False

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of activations that the layer takes."""
        return self.weight.dtype

    def __call__(self, rows: Activations) -> Tensor:
        if self.scale is None:
            return self.linear(rows.values)
        assert rows.scale is not None
        if not rows.values.is_cuda:
            # CPUs have no float8 product. Computed in float32, for tests and accuracy figures.
            product = rows.values.float() @ self.weight.float().T
            return (product * rows.scale * self.scale).to(self.dtype)
        # Fast accumulation: tensor cores add up to 128 products in fewer bits than float32 has. Turning it off costs
        # speed and gains little: the rounding to three mantissa bits is a far larger error.
        return torch._scaled_mm(
            rows.values,
            self.weight.T,
            scale_a=rows.scale,
            scale_b=self.scale,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )

    def linear(self, rows: Tensor) -> Tensor:
        """[T, K] → [T, N], of weights that are not float8."""
        if self.prepacked:
            return _product(rows, self.weight, self.bias, "none")
        return linear(rows, self.weight, self.bias)

    def linear_gelu(self, rows: Tensor) -> Tensor:
        """[T, K] → the GELU of the product [T, N]."""
        if self.prepacked:
            return _product(rows, self.weight, self.bias, "gelu")
        return gelu(linear(rows, self.weight, self.bias))

    def linear_add(self, rows: Tensor, residual: Tensor) -> Tensor:
        """[T, K] and [T, N] → their product plus the residual, [T, N]."""
        if self.prepacked:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")
            return total
        return linear(rows, self.weight, self.bias).add_(residual)

    def destination(self, start: int, stop: int) -> Destination:
        """The destination of the weights of those channels."""
        assert not self.prepacked, "oneDNN's layout has no rows"
        weight = self.weight[start:stop]
        return weight if self.scale is None else _Float8Destination(weight, self.scale[0, start:stop])

    def destinations(self, start: int, stop: int) -> tuple[Destination, Destination]:
        """The destinations of the weights and of the bias of those channels."""
        assert self.bias is not None
        return self.destination(start, stop), self.bias[start:stop]


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, function: str) -> Tensor:
    """oneDNN's product with prepacked weights, and a function of its values before they are rounded."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, function, [], "none")
    return product


@cache
def can_prepack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies prepacked weights of this dtype.

    torch offers that on x86-64 and some Arm CPUs, in bfloat16 only with AVX-512.
    """
    if device.type != "cpu":
        return False
    ones, bias = torch.ones(16, 16, dtype=dtype), torch.ones(16, dtype=dtype)
    try:
        layer = Linear(torch.ops.mkldnn._reorder_linear_weight(ones, 1024), dtype, bias=bias, prepacked=True)
        results = layer.linear(ones), layer.linear_gelu(ones), layer.linear_add(ones, -ones)
    except (AttributeError, RuntimeError):  # no such operator, or not for this dtype
        return False
    return all(torch.equal(got, want * ones) for got, want in zip(results, (17, 17, 16), strict=True))


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
        values, scale = quantize(tensor.to(self.device))
        self.weight.copy_(values)
        self.scale.copy_(scale[:, 0])


def empty(
    out_features: int,
    in_features: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    float8: bool = False,
    bias: bool = False,
) -> Linear:
    """A layer with uninitialized weights. `dtype`: the output's, and the weights' unless they are float8."""
    weight = torch.empty(out_features, in_features, device=device, dtype=FLOAT8 if float8 else dtype)
    scale = torch.empty(1, out_features, device=device) if float8 else None
    return Linear(weight, dtype, scale, torch.empty(out_features, device=device, dtype=dtype) if bias else None)


def prepack(layers: Iterable[object]) -> bool:
    """Change all matrices of the layers, one after another, to the layout that oneDNN multiplies fastest.

    Returns False and changes nothing where torch does not offer that (`can_prepack`).
    """
    matrices = [part for layer in layers for part in vars(layer).values() if isinstance(part, Linear)]
    if not all(matrix.scale is None and can_prepack(matrix.weight.device, matrix.weight.dtype) for matrix in matrices):
        return False
    for matrix in matrices:
        # The number of rows is a hint. oneDNN 3.12 chooses the same layout for 8 to 4,096 rows.
        matrix.weight = torch.ops.mkldnn._reorder_linear_weight(matrix.weight, 1024)
        matrix.prepacked = True
    return True


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[T, K] of any float dtype → float8 values [T, K] and float32 scales [T, 1]; each row's maximum becomes 448."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1, keepdim=True).div_(FLOAT8_MAX).clamp_(min=SMALLEST_SCALE)
    return (rows / scale).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), scale


def select(rows: Activations, index: Tensor) -> Activations:
    """The rows at `index` int64 [N]."""
    if rows.scale is None:
        return Activations(rows.values.index_select(0, index))
    # torch cannot index float8: gather the bytes.
    values = rows.values.view(torch.uint8).index_select(0, index).view(FLOAT8)
    return Activations(values, rows.scale.index_select(0, index))
