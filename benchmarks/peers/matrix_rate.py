"""The processor's matrix rate, and the share of it that this package's linear layers reach on the documents.

The rate is measured twice, and the higher counts: on square matrices, and on the model's own four products.
"""

from collections.abc import Iterable
from types import SimpleNamespace

import torch

from benchmarks.counts import Counts, LinearLayer
from benchmarks.peers.engines import OURS
from benchmarks.report import Json, log
from benchmarks.roofline import measure_device
from benchmarks.timing import Action, seconds_each
from e5.network import linear

TOKENS, ROUNDS = 512, 20
CPU = torch.device("cpu")


def measure(counts: Counts, compared: Json) -> list[Json]:
    """One entry for each dtype of this package. `compared`: the result of `comparison.measure`."""
    tokens_per_document = compared["tokens"] / compared["documents"]
    return [_measure(counts, tokens_per_document, row) for row in compared["engines"] if row["engine"] == OURS]


def _measure(counts: Counts, tokens_per_document: float, row: Json) -> Json:
    dtype = getattr(torch, row["dtype"])
    square = measure_device(CPU, dtype).flop_per_second
    log(f"the model's products in {row['dtype']} …")
    seconds = [seconds_each([_product(layer, dtype)], CPU, ROUNDS) for layer in counts.linears]
    products = sum(layer.flop(TOKENS) for layer in counts.linears) / sum(seconds)
    reached = row["documents_per_second"] * tokens_per_document * counts.flop_per_token
    return {
        "dtype": row["dtype"],
        "square_flop_per_second": square,
        "products_flop_per_second": products,
        "reached_flop_per_second": reached,
        "share": reached / max(square, products),
    }


def _product(layer: LinearLayer, dtype: torch.dtype) -> Action:
    """The product as this package computes it, with prepacked weights where it can."""
    matrix = linear.empty(layer.out_features, layer.in_features, CPU, dtype, bias=True)
    for values in (matrix.weight, matrix.bias):
        assert values is not None
        values.normal_()
    linear.prepack([SimpleNamespace(matrix=matrix)])
    rows = torch.randn(TOKENS, layer.in_features, dtype=dtype)
    return lambda: matrix.linear(rows)


def card(result: Iterable[Json]) -> str:
    """One line."""
    rates = [
        f"{row['dtype']} {row['square_flop_per_second'] / 1e9:.0f} GFLOP/s (squares of 1,024) and "
        f"{row['products_flop_per_second'] / 1e9:.0f} (the model's products, {TOKENS} tokens), of which the documents "
        f"reach {row['share']:.0%}"
        for row in result
    ]
    return "Matrix rate: " + "; ".join(rates)
