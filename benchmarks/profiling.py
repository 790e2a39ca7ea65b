"""Profile: where the device's time goes, by operator or kernel: one packed batch of the budget, and one short pair."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Json, log, table
from benchmarks.texts import Texts
from benchmarks.timing import synchronize
from e5 import DEFAULT_TASK
from e5.network import batches

MOST = 15
NAME_CHARACTERS = 90
TEXTS = 256


def measure(texts: Texts) -> Json:
    """One call of each under torch's profiler, after warm-up."""
    embedder = texts.embedder
    ids = embedder.tokenize([], texts.mixed(TEXTS), "").ids
    batch = max(
        ([ids[index] for index in part] for part in batches.plan(list(map(len, ids)), embedder.max_batch_tokens)),
        key=lambda part: sum(map(len, part)),
    )
    pair = texts.pairs(1)[0]
    short = embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK).ids
    device = embedder.packed.device
    return {
        "device": embedder.device,
        "dtype": embedder.dtype,
        "passes": [
            _profiled(f"one batch of {sum(map(len, batch)):,} tokens", lambda: embedder.forward(batch), device),
            _profiled(f"one pair of {sum(map(len, short))} tokens", lambda: embedder.forward(short), device),
        ],
    }


def _profiled(name: str, forward: Callable[[], Any], device: torch.device) -> Json:
    log(f"profile: {name} …")
    for _ in range(3):
        forward()
    synchronize(device)
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        forward()
        synchronize(device)
    averages: Any = recorded.key_averages()
    times = "self_device_time_total" if cuda else "self_cpu_time_total"
    # On CUDA the kernels alone: torch also gives their time to the calls that launched them.
    events = [event for event in averages if getattr(event, times) > 0 and (not cuda or _is_kernel(event))]
    events.sort(key=lambda event: -getattr(event, times))
    return {
        "pass": name,
        "milliseconds": sum(getattr(event, times) for event in events) / 1e3,
        "launches": sum(event.count for event in events),
        "top": [
            {"name": event.key, "calls": event.count, "milliseconds": getattr(event, times) / 1e3}
            for event in events[:MOST]
        ],
    }


def _is_kernel(event: Any) -> bool:
    return bool(event.device_type.name == "CUDA" and not event.is_user_annotation)


def card(result: Json) -> str:
    lines = [f"Profile: {result['dtype']} on {result['device']}, by kernel (on a CPU: by operator), the top {MOST}"]
    for one in result["passes"]:
        total = one["milliseconds"]
        rows = [
            [
                row["name"][:NAME_CHARACTERS],
                f"{row['calls']}",
                f"{row['milliseconds']:.3f}",
                f"{100 * row['milliseconds'] / total if total else 0:.1f}",
            ]
            for row in one["top"]
        ]
        lines += [
            f"  {one['pass']}: {total:.2f} ms in all, {one['launches']:,} calls",
            table(["", "calls", "ms", "%"], rows),
        ]
    return "\n".join(lines)
