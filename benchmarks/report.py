"""What the benchmark's sections share: interleaved rounds, medians, aligned tables, and which machine this is.

Light to import: torch is loaded when a function needs it, so that a measured process pays for it where it is measured.
"""

import importlib.metadata
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from e5_cog.repository import ROOT

T = TypeVar("T")
K = TypeVar("K")
Json = dict[str, Any]
"""A section's numbers. Each key that holds a number of a unit names it: seconds, milliseconds, bytes, …"""
Keep = Callable[[Json], None]
"""Takes a section's numbers as far as they are known, in case the rest is never measured."""

PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "cog")


def log(text: str) -> None:
    """Say how far the benchmark is; standard output is the card's alone."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One call: how long it took, and what it gave."""

    seconds: float
    value: T


def discard(_: object) -> None:
    """Keep nothing: for callers that do not want results before the end."""


def interleaved(
    actions: Mapping[K, Callable[[int], T]],
    rounds: int,
    warm_up: int = 1,
    after_round: Callable[[dict[K, list[Sample[T]]]], None] = discard,
) -> dict[K, list[Sample[T]]]:
    """Call every action once in each round, with the round's number; the first `warm_up` rounds are not kept.

    The order within a round is shuffled (the same in every run). So what changes while the benchmark runs – heat, a
    busy neighbour, what the call before left in the caches – falls on all of them alike. `after_round` gets the samples
    of every round so far.
    """
    samples: dict[K, list[Sample[T]]] = {name: [] for name in actions}
    for number in range(warm_up + rounds):
        order = list(actions)
        random.Random(number).shuffle(order)
        for name in order:
            started = time.perf_counter()
            value = actions[name](number)
            seconds = time.perf_counter() - started
            if number >= warm_up:
                samples[name].append(Sample(seconds, value))
        if number >= warm_up:
            after_round(samples)
    return samples


def seconds(samples: Sequence[Sample[Any]]) -> list[float]:
    return [sample.seconds for sample in samples]


def ratios(values: Mapping[K, float], pairs: Sequence[tuple[K, K]]) -> list[Json]:
    """value of the first ÷ value of the second, for each pair of (engine, dtype)."""
    return [{"of": _label(one), "to": _label(other), "ratio": values[one] / values[other]} for one, other in pairs]


def ratio_lines(found: Sequence[Json]) -> list[str]:
    width = max(len(f"{row['of']} / {row['to']}") for row in found)
    return [f"  {row['of'] + ' / ' + row['to']:<{width}}  {row['ratio']:.2f}" for row in found]


def _label(name: object) -> str:
    return " ".join(name) if isinstance(name, tuple) else str(name)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Aligned columns: the first `text_columns` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return "\n".join(map(line, [head, *rows]))


def megabytes(count: int | None) -> str:
    """Bytes as MB (10⁶ bytes); an em dash where nothing was measured."""
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


def machine() -> Json:
    """Where the numbers come from: processor, GPU, packages, threads, and how busy it was before."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": gpu.name if gpu else None,
        "gpu_bytes": gpu.total_memory if gpu else None,
        "cuda_build": torch.version.cuda,
        "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None,
        "commit": _printed("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "threads": torch.get_num_threads(),
        "spin": f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', '')}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def machine_card(found: Json) -> str:
    gpu = "no GPU"
    if found["gpu"]:
        gpu = (
            f"{found['gpu']}, {found['gpu_bytes'] / 2**30:.0f} GiB (CUDA build {found['cuda_build']}, "
            f"driver {found['driver']})"
        )
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    return (
        f"Machine   {found['cpu']}, {found['usable_cores']} of {found['cores']} cores, {gpu}; {found['system']}\n"
        f"          {found['threads']} threads, {found['spin']}, "
        f"load average before: {found['load_before']}\n"
        f"Software  Python {found['python']}, {packages}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _printed(*command: str) -> str | None:
    """The first line that a command prints; None where it is missing or fails."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
