"""Ceilings: what this machine can do at most, and so the least that the model's linear layers can take.

Two numbers are measured before anything is judged: how fast the matrix units multiply (random data: zeros run faster),
and how fast memory is read. Then each linear layer of the model at several numbers of tokens, as a share of the larger
of its two floors, operations over the peak and bytes over the bandwidth.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear as product

from benchmarks.counts import Counts, Linear
from benchmarks.report import Json, log, median, table
from benchmarks.timing import Action, free, seconds_each, times

TOKENS = (1, 16, 64, 128, 256, 512, 1024, 4096, 16384)
CPU_TOKENS, QUICK_TOKENS = (1, 16, 128, 1024), (1, 64)
SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the square matrices: large enough that nothing but the matrix units counts."""
COPY_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
ROTATED_BYTES = {"cuda": 512 << 20, "cpu": 32 << 20}
"""Weights are read from several copies in turn, of so many bytes together: 60 MB would stay in an H200's cache."""
MOST_COPIES = 64


@dataclass(frozen=True)
class Ceilings:
    """Of one device: operations a second in `dtype`, and bytes a second."""

    device: str
    dtype: str
    flop_per_second: float
    copy_bytes_per_second: float
    read_bytes_per_second: float

    @property
    def bytes_per_second(self) -> float:
        """The faster of the two ways to move bytes: the memory can do at least that."""
        return max(self.copy_bytes_per_second, self.read_bytes_per_second)

    @classmethod
    def of(cls, result: Json) -> Self:
        """From what `measure` gave."""
        return cls(**{field.name: result[field.name] for field in fields(cls)})


def ceilings(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Ceilings:
    """Measure both, in about a second on a GPU."""
    log("measuring the device's matrix rate and bandwidth …")
    rounds = 5 if quick or device.type == "cpu" else 500
    found = Ceilings(
        str(device),
        str(dtype).removeprefix("torch."),
        _matrix_rate(device, dtype, SIDE[device.type] // (4 if quick else 1), rounds),
        *_bandwidths(device, COPY_BYTES[device.type] // (16 if quick else 1), max(5, rounds // 10)),
    )
    free(device)
    return found


def _matrix_rate(device: torch.device, dtype: torch.dtype, side: int, rounds: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / median(times(lambda: torch.mm(a, b, out=out), device, rounds, warm_up=max(3, rounds // 4)))


def _bandwidths(device: torch.device, size: int, rounds: int) -> tuple[float, float]:
    """Bytes read and written by a copy, and bytes read by a sum, a second."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    copy = median(times(lambda: target.copy_(source), device, rounds))
    read = median(times(source.sum, device, rounds))
    return 2 * size / copy, size / read


def measure(counts: Counts, device: torch.device, dtype: torch.dtype, quick: bool) -> Json:
    """The device's ceilings, the model's limits, and each of its linear layers in 16 bits and in float8."""
    found = ceilings(device, dtype, quick)
    sizes = QUICK_TOKENS if quick else TOKENS if device.type == "cuda" else CPU_TOKENS
    rows: list[Json] = []
    skipped: dict[str, str] = {}
    for one in counts.linears:
        for kind, build in KINDS.items():
            if kind != "16 bit" and device.type != "cuda":
                skipped[kind] = "needs a GPU"
            if kind in skipped:
                continue
            log(f"products: {one.name}, {kind} …")
            for row in _layer(one, kind, build, sizes, found, dtype):
                # An older GPU or torch refuses a kind or a size: the first reason is part of the result.
                if "failed" in row:
                    skipped.setdefault(f"{kind}, some", f"{one.name}, {row['tokens']} tokens: {row['failed']}")
                else:
                    rows.append(row)
            free(device)
    return {
        **asdict(found),
        **counts.facts(),
        **limits(counts, found),
        "products": rows,
        "skipped": skipped,
    }


def limits(counts: Counts, found: Ceilings) -> Json:
    """The two times under which nothing that computes this model in 16 bits can stay."""
    return {
        "limit_tokens_per_second": counts.tokens_per_second(found.flop_per_second),
        "limit_read_milliseconds": counts.read_milliseconds(found.bytes_per_second),
    }


def _layer(
    one: Linear, kind: str, build: "Build", sizes: tuple[int, ...], found: Ceilings, dtype: torch.dtype
) -> list[Json]:
    device = torch.device(found.device)
    weight_bytes = dtype.itemsize if kind == "16 bit" else 1
    copies = max(1, min(MOST_COPIES, ROTATED_BYTES[device.type] // (weight_bytes * one.weights)))
    multiply = build(one, copies, device, dtype)
    rows: list[Json] = []
    for tokens in sizes:
        rounds = 5 if device.type == "cpu" else 10 if tokens * copies > 16384 else 20
        try:
            seconds = seconds_each(multiply(tokens), device, rounds)
        except (RuntimeError, AttributeError) as error:
            rows.append({"tokens": tokens, "failed": (str(error).splitlines() or [""])[0]})
            continue
        arithmetic = one.flop(tokens) / found.flop_per_second
        memory = one.bytes(tokens, weight_bytes, weight_bytes) / found.bytes_per_second
        rows.append(
            {
                "layer": one.name,
                "kind": kind,
                "tokens": tokens,
                "microseconds": seconds * 1e6,
                "flop_per_second": one.flop(tokens) / seconds,
                "floor_microseconds": max(arithmetic, memory) * 1e6,
                "share_of_floor": max(arithmetic, memory) / seconds,
            }
        )
    return rows


Build = Callable[[Linear, int, torch.device, torch.dtype], Callable[[int], list[Action]]]
"""A layer and the number of its copies → for a number of tokens, one product with each copy."""


def _dense(one: Linear, copies: int, device: torch.device, dtype: torch.dtype) -> Callable[[int], list[Action]]:
    weights = [torch.randn(one.outputs, one.inputs, device=device, dtype=dtype) for _ in range(copies)]

    def actions(tokens: int) -> list[Action]:
        rows = torch.randn(tokens, one.inputs, device=device, dtype=dtype)
        return [lambda weight=weight: product(rows, weight) for weight in weights]  # type: ignore[misc]

    return actions


def _float8(by_row: bool, out: torch.dtype) -> Build:
    """Products of float8, with a scale for each row of both sides or with one for all of them."""

    def build(one: Linear, copies: int, device: torch.device, _: torch.dtype) -> Callable[[int], list[Action]]:
        def draw(rows: int) -> Tensor:
            return torch.randn(rows, one.inputs, device=device).to(torch.float8_e4m3fn)

        def scale(*shape: int) -> Tensor:
            return torch.ones(shape if by_row else (), device=device)

        weights = [draw(one.outputs) for _ in range(copies)]

        def actions(tokens: int) -> list[Action]:
            rows, scales = draw(tokens), (scale(tokens, 1), scale(1, one.outputs))

            def multiply(weight: Tensor) -> Tensor:
                return torch._scaled_mm(
                    rows, weight.T, scale_a=scales[0], scale_b=scales[1], out_dtype=out, use_fast_accum=True
                )

            return [lambda weight=weight: multiply(weight) for weight in weights]  # type: ignore[misc]

        return actions

    return build


KINDS: dict[str, Build] = {
    "16 bit": _dense,
    "float8 rows, float16": _float8(True, torch.float16),
    "float8 rows, bfloat16": _float8(True, torch.bfloat16),
    "float8 one scale": _float8(False, torch.float16),
}
"""float8: whether row-wise products give float16 depends on torch's release, so both are asked for."""


def card(result: Json) -> str:
    sizes = list(dict.fromkeys(row["tokens"] for row in result["products"]))
    names = list(dict.fromkeys((row["layer"], row["kind"]) for row in result["products"]))
    cells = {(row["layer"], row["kind"], row["tokens"]): row for row in result["products"]}

    def rows(text: Callable[[Json], str]) -> list[list[str]]:
        return [
            [*name, *(text(cells[(*name, size)]) if (*name, size) in cells else "–" for size in sizes)]
            for name in names
        ]

    head = ["layer", "kind", *(f"{size:,}" for size in sizes)]
    return "\n".join(
        [
            f"Ceilings: {result['flop_per_second'] / 1e12:,.3g} TFLOP/s in {result['dtype']}; "
            f"{result['copy_bytes_per_second'] / 1e12:.3g} TB/s by a copy (read and written), "
            f"{result['read_bytes_per_second'] / 1e12:.3g} TB/s by a sum",
            f"  linear layers: {result['flop_per_token'] / 1e9:.4g} GFLOP a token → at most "
            f"{result['limit_tokens_per_second']:,.0f} tokens/s; "
            f"{2 * result['linear_weights'] / 1e9:.4g} GB in 16 bits → at least "
            f"{result['limit_read_milliseconds']:.3g} ms a pass",
            "  µs of one product, by tokens:",
            table(head, rows(lambda row: f"{row['microseconds']:,.1f}"), text_columns=2),
            "  its floor's share of that, % (floor: the larger of operations / peak and bytes / bandwidth;",
            "  above 100 % in float8, whose peak is higher):",
            table(head, rows(lambda row: f"{100 * row['share_of_floor']:.0f}"), text_columns=2),
            *(f"  {kind}: skipped, {reason}" for kind, reason in result["skipped"].items()),
        ]
    )
