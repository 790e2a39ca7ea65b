"""Fused ops: a model's steps between its matrix products, by fused kernels, torch's operators and torch.compile.

Also times liger-kernel's residual RMSNorm and gate where it is installed; its RoPE needs another layout. An encoder's
GELU is torch's own, which should be at its floor. Each time is compared with its floor: the bytes of one pass over the
measured bandwidth. Data that stays in the cache, as 128 tokens do on a GPU, may beat the floor. Times are device times,
recorded in a CUDA graph.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.report import Json, cells, first_line, log, table
from benchmarks.timing import Action, free, seconds_each
from e5.network import fused_ops, torch_ops
from e5.network.fused_ops import FusedOps

TOKENS = {"cuda": (128, 16384), "cpu": (128,)}
CALLS = 20
"""Calls in one CUDA graph."""
KERNELS, OPERATORS, COMPILED, LIGER = "fused kernel", "torch's operators", "torch.compile", "liger-kernel"

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
"""Replaces a function of e5.network.fused_ops by another implementation."""
Case = tuple[int, Callable[[Wrap], Action]]
"""The bytes that a step has to move, and a factory of its call."""


def measure(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, bytes_per_second: float) -> Json:
    """`config`: a config.json; `dtype`: a 16-bit dtype."""
    implementations = [KERNELS, OPERATORS, COMPILED] if device.type == "cuda" else [OPERATORS]
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        implementations.append(LIGER)
    rows: list[Json] = []
    skipped: dict[str, str] = {}
    for tokens in TOKENS[device.type]:
        for implementation in implementations:
            log(f"fused ops: {tokens} tokens, {implementation} …")
            ops = fused_ops.for_device(device) if implementation == KERNELS else torch_ops
            for step, (size, make_action) in _cases(config, tokens, device, dtype, ops).items():
                try:
                    with torch.inference_mode():
                        action = make_action(
                            {COMPILED: _compiled, LIGER: _liger}.get(implementation, lambda function: function)
                        )
                        seconds = seconds_each([action] * CALLS, device, rounds=20 if device.type == "cuda" else 3)
                except Exception as error:  # such as a missing compiler: measure the rest
                    skipped[implementation] = f"{step}: {first_line(error)}"
                    continue
                floor = size / bytes_per_second
                rows.append(
                    {
                        "step": step,
                        "tokens": tokens,
                        "implementation": implementation,
                        "microseconds": seconds * 1e6,
                        "floor_microseconds": floor * 1e6,
                        "share_of_floor": floor / seconds,
                    }
                )
            free(device)
    return {"device": str(device), "rows": rows, "skipped": skipped}


def _compiled(function: Function) -> Function:
    compiled: Function = torch.compile(function, dynamic=False)
    return compiled


def _liger(function: Function) -> Function:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    if function is torch_ops.silu_and_mul:
        return lambda gate_up, dtype: LigerFusedGateUpSiLUMulFunction.apply(gate_up)
    if function is torch_ops.add_rms_norm:
        return lambda hidden, residual, weight, eps, dtype: LigerFusedAddRMSNormFunction.apply(
            residual, hidden, weight, eps, 0.0, "llama", False
        )
    raise NotImplementedError("liger-kernel has no such operation, or in another layout")


def _cases(
    config: Mapping[str, Any], tokens: int, device: torch.device, dtype: torch.dtype, ops: FusedOps
) -> dict[str, Case]:
    hidden_size, num_attention_heads = config["hidden_size"], config["num_attention_heads"]
    intermediate_size, num_key_value_heads = config["intermediate_size"], config.get("num_key_value_heads", 0)
    head_dim = config.get("head_dim") or hidden_size // num_attention_heads
    rotated_heads = num_attention_heads + num_key_value_heads

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def norm(wrap: Wrap) -> Action:
        function, hidden, weight = wrap(ops.add_rms_norm), draw(tokens, hidden_size), draw(hidden_size)
        residual = draw(tokens, hidden_size).mul_(1e-3)  # small, because it is added in place about a hundred times
        return lambda: function(hidden, residual, weight, 1e-5, dtype)

    def rope(wrap: Wrap) -> Action:
        function, qkv = wrap(ops.apply_rope), draw(tokens, rotated_heads + num_key_value_heads, head_dim)
        angles = torch.rand(tokens, head_dim // 2, device=device)
        position_ids = torch.arange(tokens, device=device)
        cos_sin = ops.gather_cos_sin(torch.cat([angles.cos(), angles.sin()], dim=1), position_ids, dtype)
        return lambda: function(qkv[:, :rotated_heads], cos_sin)

    def gate(wrap: Wrap) -> Action:
        function, gate_up = wrap(ops.silu_and_mul), draw(tokens, 2 * intermediate_size)
        return lambda: function(gate_up, dtype)

    def layer_norm(wrap: Wrap) -> Action:
        function, rows, weight = wrap(ops.add_layer_norm), draw(tokens, hidden_size), draw(hidden_size)
        residual = draw(tokens, hidden_size).mul_(1e-3)  # small, because torch's operators add it in place
        return lambda: function(rows, residual, weight, weight, 1e-5)

    def gelu(wrap: Wrap) -> Action:
        function, wide = wrap(torch.nn.functional.gelu), draw(tokens, intermediate_size)
        return lambda: function(wide)

    column_bytes = tokens * dtype.itemsize
    if config["model_type"] != "mistral":
        cases: dict[str, Case] = {"residual and layer norm": (3 * column_bytes * hidden_size, layer_norm)}
        return cases | ({"GELU": (2 * column_bytes * intermediate_size, gelu)} if ops is torch_ops else {})
    return {
        "residual and RMSNorm": (4 * column_bytes * hidden_size, norm),
        "RoPE": (2 * column_bytes * rotated_heads * head_dim, rope),
        "gate": (3 * column_bytes * intermediate_size, gate),
    }


def card(result: Json) -> str:
    formats = "{step}|{implementation}|{tokens:,}|{microseconds:,.1f}|{floor_microseconds:,.1f}|{share_of_floor:.0%}"
    rows = cells(result["rows"], formats)
    return "\n".join(
        [
            "Fused ops: steps between matrix products; floor: one pass over inputs and outputs at the bandwidth",
            table(["step", "by", "tokens", "µs", "floor µs", "floor / time"], rows, text_columns=2),
            *(f"  {name}: not measured, {reason}" for name, reason in result["skipped"].items()),
        ]
    )
