"""Linear layers of a model as bare matrix products on random data, in 16 bits and in float8."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.counts import LinearLayer
from benchmarks.timing import Action

Build = Callable[[LinearLayer, int, torch.device, torch.dtype], Callable[[int], list[Action]]]
"""Allocates a number of copies of a layer's weights. Returns a function of the number of tokens, which returns one
product per copy."""


def _dense(layer: LinearLayer, copies: int, device: torch.device, dtype: torch.dtype) -> Callable[[int], list[Action]]:
    weights = [torch.randn(layer.out_features, layer.in_features, device=device, dtype=dtype) for _ in range(copies)]

    def actions(tokens: int) -> list[Action]:
        inputs = torch.randn(tokens, layer.in_features, device=device, dtype=dtype)
        return [lambda weight=weight: linear(inputs, weight) for weight in weights]  # type: ignore[misc]

    return actions


def _float8(row_wise: bool, out_dtype: torch.dtype) -> Build:
    """Float8 products with one scale per row of both operands, or with one scale per operand."""

    def build(layer: LinearLayer, copies: int, device: torch.device, _: torch.dtype) -> Callable[[int], list[Action]]:
        def draw(rows: int) -> Tensor:
            return torch.randn(rows, layer.in_features, device=device).to(torch.float8_e4m3fn)

        def scale(*shape: int) -> Tensor:
            return torch.ones(shape if row_wise else (), device=device)

        weights = [draw(layer.out_features) for _ in range(copies)]

        def actions(tokens: int) -> list[Action]:
            inputs, scale_a, scale_b = draw(tokens), scale(tokens, 1), scale(1, layer.out_features)

            def multiply(weight: Tensor) -> Tensor:
                return torch._scaled_mm(
                    inputs, weight.T, scale_a=scale_a, scale_b=scale_b, out_dtype=out_dtype, use_fast_accum=True
                )

            return [lambda weight=weight: multiply(weight) for weight in weights]  # type: ignore[misc]

        return actions

    return build


SIXTEEN_BIT = "16 bit"
KINDS: dict[str, Build] = {
    SIXTEEN_BIT: _dense,
    "float8 rows, float16": _float8(True, torch.float16),
    "float8 rows, bfloat16": _float8(True, torch.bfloat16),
    "float8 one scale": _float8(False, torch.float16),
}
"""Whether row-wise float8 products can return float16 depends on torch's release, so both dtypes are measured."""
