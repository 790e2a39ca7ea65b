"""Profile: device time by kernel (on a CPU: by operator) of one full packed batch and of one short pair."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Json, cells, log, table
from benchmarks.texts import RandomTexts
from benchmarks.timing import synchronize
from e5 import DEFAULT_TASK
from e5.network import batches

MAX_KERNELS = 15
NAME_CHARACTERS = 90
TEXTS = 256


def measure(texts: RandomTexts) -> Json:
    """Profile one forward pass of each, after warm-up."""
    embedder = texts.embedder
    ids = embedder.tokenize([], texts.mixed(TEXTS), "").ids
    batch = max(
        ([ids[index] for index in part] for part in batches.plan(list(map(len, ids)), embedder.max_batch_tokens)),
        key=lambda part: sum(map(len, part)),
    )
    pair = texts.pairs(1)[0]
    pair_ids = embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK).ids
    device = embedder.packed.device
    return {
        "device": embedder.device,
        "dtype": embedder.dtype,
        "passes": [
            _profile(f"one batch of {sum(map(len, batch)):,} tokens", lambda: embedder.forward(batch), device),
            _profile(f"one pair of {sum(map(len, pair_ids))} tokens", lambda: embedder.forward(pair_ids), device),
        ],
    }


def _profile(name: str, forward: Callable[[], Any], device: torch.device) -> Json:
    log(f"profile: {name} …")
    for _ in range(3):
        forward()
    synchronize(device)
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        forward()
        synchronize(device)
    averages: Any = profiler.key_averages()
    time_attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    # On CUDA keep only kernels: torch also attributes their time to the calls that launched them.
    events = [event for event in averages if getattr(event, time_attribute) > 0 and (not cuda or _is_kernel(event))]
    events.sort(key=lambda event: -getattr(event, time_attribute))
    return {
        "pass": name,
        "milliseconds": sum(getattr(event, time_attribute) for event in events) / 1e3,
        "launches": sum(event.count for event in events),
        "top": [
            {"name": event.key, "calls": event.count, "milliseconds": getattr(event, time_attribute) / 1e3}
            for event in events[:MAX_KERNELS]
        ],
    }


def _is_kernel(event: Any) -> bool:
    return bool(event.device_type.name == "CUDA" and not event.is_user_annotation)


def card(result: Json) -> str:
    lines = [f"Profile: {result['dtype']} on {result['device']}, by kernel (on a CPU: by operator), top {MAX_KERNELS}"]
    for profiled in result["passes"]:
        total = profiled["milliseconds"]
        top = [row | {"share": row["milliseconds"] / total} for row in profiled["top"]]
        rows = cells(top, f"{{name:.{NAME_CHARACTERS}}}|{{calls}}|{{milliseconds:.3f}}|{{share:.1%}}")
        lines += [
            f"  {profiled['pass']}: {total:.2f} ms in total, {profiled['launches']:,} calls",
            table(["", "calls", "ms", "share"], rows),
        ]
    return "\n".join(lines)
