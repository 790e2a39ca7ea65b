"""Roofline: the device's matrix rate and memory bandwidth, and how close the model's linear layers come to them.

Measures the matrix rate (on random data: zeros run faster) and the bandwidth first. Then times each linear layer at
several numbers of tokens and compares it with its floor: the larger of FLOPs / matrix rate and bytes / bandwidth.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Self

import torch

from benchmarks.counts import Counts, LinearLayer
from benchmarks.products import KINDS, SIXTEEN_BIT, Build
from benchmarks.report import Json, log, median, table
from benchmarks.timing import free, seconds_each, times

TOKENS = (1, 16, 64, 128, 256, 512, 1024, 4096, 16384)
CPU_TOKENS, QUICK_TOKENS = (1, 16, 128, 1024), (1, 64)
SIDE = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices: large enough that only the matrix units limit the product."""
COPY_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
ROTATED_BYTES = {"cuda": 512 << 20, "cpu": 32 << 20}
"""Total size of the weight copies that are read in rotation: a single one of 60 MB would stay in an H200's cache."""
MAX_COPIES = 64


@dataclass(frozen=True)
class Roofline:
    """Limits of one device: FLOP/s in `dtype`, and bytes/s."""

    device: str
    dtype: str
    flop_per_second: float
    copy_bytes_per_second: float
    read_bytes_per_second: float

    @property
    def bytes_per_second(self) -> float:
        """The faster of the two measurements: both are lower bounds on the bandwidth."""
        return max(self.copy_bytes_per_second, self.read_bytes_per_second)

    @classmethod
    def of(cls, result: Json) -> Self:
        """Restore from the result of `measure`."""
        return cls(**{field.name: result[field.name] for field in fields(cls)})


def measure_device(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Roofline:
    """Measure matrix rate and bandwidth. Takes about a second on a GPU."""
    log("measuring the device's matrix rate and bandwidth …")
    rounds = 5 if quick or device.type == "cpu" else 500
    flop_per_second = _matrix_rate(device, dtype, SIDE[device.type] // (4 if quick else 1), rounds)
    copy, read = _bandwidths(device, COPY_BYTES[device.type] // (16 if quick else 1), max(5, rounds // 10))
    free(device)
    return Roofline(str(device), str(dtype).removeprefix("torch."), flop_per_second, copy, read)


def _matrix_rate(device: torch.device, dtype: torch.dtype, side: int, rounds: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / median(times(lambda: torch.mm(a, b, out=out), device, rounds, warm_up=max(3, rounds // 4)))


def _bandwidths(device: torch.device, size: int, rounds: int) -> tuple[float, float]:
    """Bytes per second of a copy (reads and writes) and of a sum (reads)."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    copy = median(times(lambda: target.copy_(source), device, rounds))
    read = median(times(source.sum, device, rounds))
    return 2 * size / copy, size / read


def measure(counts: Counts, device: torch.device, dtype: torch.dtype, quick: bool) -> Json:
    """The device's roofline, the model's limits under it, and each linear layer in 16 bits and in float8."""
    roofline = measure_device(device, dtype, quick)
    sizes = QUICK_TOKENS if quick else TOKENS if device.type == "cuda" else CPU_TOKENS
    rows: list[Json] = []
    skipped: dict[str, str] = {}
    for layer in counts.linears:
        for kind, build in KINDS.items():
            if kind != SIXTEEN_BIT and device.type != "cuda":
                skipped[kind] = "needs a GPU"
                continue
            log(f"roofline: {layer.name}, {kind} …")
            for row in _time_layer(layer, kind, build, sizes, roofline, dtype):
                # Older GPUs and torch releases reject some kinds or sizes. Report the first reason.
                if "failed" in row:
                    skipped.setdefault(f"{kind}, some", f"{layer.name}, {row['tokens']} tokens: {row['failed']}")
                else:
                    rows.append(row)
            free(device)
    return {
        **asdict(roofline),
        **counts.facts(),
        # Bounds on any 16-bit implementation of the model.
        "limit_tokens_per_second": counts.tokens_per_second(roofline.flop_per_second),
        "limit_read_milliseconds": counts.read_milliseconds(roofline.bytes_per_second),
        "products": rows,
        "skipped": skipped,
    }


def _time_layer(
    layer: LinearLayer, kind: str, build: Build, sizes: tuple[int, ...], roofline: Roofline, dtype: torch.dtype
) -> list[Json]:
    device = torch.device(roofline.device)
    weight_bytes = dtype.itemsize if kind == SIXTEEN_BIT else 1
    copies = max(1, min(MAX_COPIES, ROTATED_BYTES[device.type] // (weight_bytes * layer.weights)))
    actions = build(layer, copies, device, dtype)
    rows: list[Json] = []
    for tokens in sizes:
        rounds = 5 if device.type == "cpu" else 10 if tokens * copies > 16384 else 20
        try:
            seconds = seconds_each(actions(tokens), device, rounds)
        except (RuntimeError, AttributeError) as error:
            rows.append({"tokens": tokens, "failed": (str(error).splitlines() or [""])[0]})
            continue
        compute = layer.flop(tokens) / roofline.flop_per_second
        memory = layer.bytes(tokens, weight_bytes, weight_bytes) / roofline.bytes_per_second
        rows.append(
            {
                "layer": layer.name,
                "kind": kind,
                "tokens": tokens,
                "microseconds": seconds * 1e6,
                "flop_per_second": layer.flop(tokens) / seconds,
                "floor_microseconds": max(compute, memory) * 1e6,
                "share_of_floor": max(compute, memory) / seconds,
            }
        )
    return rows


def card(result: Json) -> str:
    sizes = list(dict.fromkeys(row["tokens"] for row in result["products"]))
    layers = list(dict.fromkeys((row["layer"], row["kind"]) for row in result["products"]))
    products = {(row["layer"], row["kind"], row["tokens"]): row for row in result["products"]}

    def rows(text: Callable[[Json], str]) -> list[list[str]]:
        return [
            [*layer, *(text(products[(*layer, size)]) if (*layer, size) in products else "–" for size in sizes)]
            for layer in layers
        ]

    head = ["layer", "kind", *(f"{size:,}" for size in sizes)]
    return "\n".join(
        [
            f"Roofline: {result['flop_per_second'] / 1e12:,.3g} TFLOP/s in {result['dtype']}; "
            f"{result['copy_bytes_per_second'] / 1e12:.3g} TB/s by a copy (reads and writes), "
            f"{result['read_bytes_per_second'] / 1e12:.3g} TB/s by a sum",
            f"  linear layers: {result['flop_per_token'] / 1e9:.4g} GFLOP a token → at most "
            f"{result['limit_tokens_per_second']:,.0f} tokens/s; "
            f"{2 * result['linear_weights'] / 1e9:.4g} GB in 16 bits → at least "
            f"{result['limit_read_milliseconds']:.3g} ms a pass",
            "  µs of one product, by tokens:",
            table(head, rows(lambda row: f"{row['microseconds']:,.1f}"), text_columns=2),
            "  floor / time in % (floor: the larger of FLOPs / matrix rate and bytes / bandwidth;",
            "  float8 may exceed 100 %, because its matrix rate is higher):",
            table(head, rows(lambda row: f"{100 * row['share_of_floor']:.0f}"), text_columns=2),
            *(f"  {kind}: skipped, {reason}" for kind, reason in result["skipped"].items()),
        ]
    )
