"""What a decoder computes between its products, by itself: fused kernels, torch's operators, and those compiled.

Where liger-kernel is installed, its norm with addition and its gate as well; its rotation takes another layout.

Each as a share of its floor, the bytes that one pass must move over the measured bandwidth; what stays in the cache, as
128 tokens do on a GPU, may be faster. Time of the device: the calls are recorded in a graph.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.report import Json, log, table
from benchmarks.timing import Action, free, seconds_each
from e5.network import fused_ops, torch_ops
from e5.network.fused_ops import FusedOps

TOKENS = {"cuda": (128, 16384), "cpu": (128,)}
CALLS = 20
"""In one graph, one after the other."""
KERNELS, OPERATORS, COMPILED, LIGER = "kernels", "torch's operators", "the same, compiled", "liger-kernel"


def measure(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, bytes_per_second: float) -> Json:
    """For the sizes of a config.json of Mistral's kind, in 16 bits."""
    ways = [KERNELS, OPERATORS, COMPILED] if device.type == "cuda" else [OPERATORS]
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        ways.append(LIGER)
    rows: list[Json] = []
    skipped: dict[str, str] = {}
    for tokens in TOKENS[device.type]:
        for way in ways:
            log(f"elementwise: {tokens} tokens, {way} …")
            ops = fused_ops.for_device(device) if way == KERNELS else torch_ops
            for name, (size, make) in _cases(config, tokens, device, dtype, ops).items():
                try:
                    with torch.inference_mode():
                        action = make({COMPILED: _compiled, LIGER: _liger}.get(way, _plain))
                        seconds = seconds_each([action] * CALLS, device, rounds=20 if device.type == "cuda" else 3)
                except Exception as error:  # a compiler that is not there is a reason, not the end
                    skipped[way] = f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                    continue
                floor = size / bytes_per_second
                rows.append(
                    {
                        "step": name,
                        "tokens": tokens,
                        "way": way,
                        "microseconds": seconds * 1e6,
                        "floor_microseconds": floor * 1e6,
                        "share_of_floor": floor / seconds,
                    }
                )
            free(device)
    return {"device": str(device), "rows": rows, "skipped": skipped}


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled


def _liger(function: Callable[..., Any]) -> Callable[..., Any]:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    if function is torch_ops.silu_and_mul:
        return lambda gate_up, dtype: LigerFusedGateUpSiLUMulFunction.apply(gate_up)
    if function is torch_ops.add_rms_norm:
        return lambda hidden, residual, weight, eps, dtype: LigerFusedAddRMSNormFunction.apply(
            residual, hidden, weight, eps, 0.0, "llama", False
        )
    raise NotImplementedError("its rotation takes queries and keys in another layout")


def _cases(
    config: Mapping[str, Any], tokens: int, device: torch.device, dtype: torch.dtype, ops: FusedOps
) -> dict[str, tuple[int, Callable[[Wrap], Action]]]:
    """Step → the bytes that it must move, and what makes its call with a function plain or compiled."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    keys, head = config["num_key_value_heads"], config.get("head_dim") or width // heads

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def norm(wrap: Wrap) -> Action:
        function, hidden, weight = wrap(ops.add_rms_norm), draw(tokens, width), draw(width)
        residual = draw(tokens, width).mul_(1e-3)  # added in place a hundred times
        return lambda: function(hidden, residual, weight, 1e-5, dtype)

    def rotate(wrap: Wrap) -> Action:
        function, qkv = wrap(ops.apply_rope), draw(tokens, heads + 2 * keys, head)
        angles = torch.rand(tokens, head // 2, device=device)
        positions = torch.arange(tokens, device=device)
        cos_sin = ops.gather_cos_sin(torch.cat([angles.cos(), angles.sin()], dim=1), positions, dtype)
        return lambda: function(qkv[:, : heads + keys], cos_sin)

    def gate(wrap: Wrap) -> Action:
        function, gate_up = wrap(ops.silu_and_mul), draw(tokens, 2 * inner)
        return lambda: function(gate_up, dtype)

    row = tokens * dtype.itemsize
    return {
        "addition and norm": (4 * row * width, norm),
        "rotation": (2 * row * (heads + keys) * head, rotate),
        "gate": (3 * row * inner, gate),
    }


def card(result: Json) -> str:
    rows = [
        [
            row["step"],
            row["way"],
            f"{row['tokens']:,}",
            f"{row['microseconds']:,.1f}",
            f"{row['floor_microseconds']:,.1f}",
            f"{100 * row['share_of_floor']:.0f}",
        ]
        for row in result["rows"]
    ]
    return "\n".join(
        [
            "Elementwise: between the products; floor: one pass over what it reads and writes, at the bandwidth",
            table(["step", "by", "tokens", "µs", "floor µs", "floor's share %"], rows, text_columns=2),
            *(f"  {way}: not measured, {reason}" for way, reason in result["skipped"].items()),
        ]
    )
