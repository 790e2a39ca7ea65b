"""Shared by the benchmark's sections: interleaved rounds, medians, aligned tables, and facts about the machine.

Imports torch only inside functions, because the setup benchmark measures that import.
"""

import importlib.metadata
import json
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
"""A section's numbers. Keys name the unit: seconds, milliseconds, bytes, …"""
Keep = Callable[[Json], None]
"""Receives a section's numbers so far, so that they survive if the section is cut off."""

PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "cog")


def log(text: str) -> None:
    """Print progress to standard error; standard output is reserved for the card."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One call: its duration and its result."""

    seconds: float
    value: T


def discard(_: object) -> None:
    """A callback that ignores partial results."""


def interleaved(
    actions: Mapping[K, Callable[[int], T]],
    rounds: int,
    warm_up: int = 1,
    after_round: Callable[[dict[K, list[Sample[T]]]], None] = discard,
) -> dict[K, list[Sample[T]]]:
    """Call every action once per round with the round's number, and discard the first `warm_up` rounds.

    Each round shuffles the order, the same way in every run, so that heat, other load and cache contents affect all
    actions alike. `after_round` receives the samples of all rounds so far.
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
    """value of the first ÷ value of the second, for each pair of keys."""
    return [
        {"of": _label(numerator), "to": _label(denominator), "ratio": values[numerator] / values[denominator]}
        for numerator, denominator in pairs
    ]


def ratio_lines(rows: Sequence[Json]) -> list[str]:
    width = max(len(f"{row['of']} / {row['to']}") for row in rows)
    return [f"  {row['of'] + ' / ' + row['to']:<{width}}  {row['ratio']:.2f}" for row in rows]


def first_line(error: Exception) -> str:
    """The error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _label(key: object) -> str:
    return " ".join(key) if isinstance(key, tuple) else str(key)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    """Nearest-rank percentile: always a measured value, never an interpolated one."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Align columns: the first `text_columns` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return "\n".join(map(line, [head, *rows]))


def cells(rows: Sequence[Json], formats: str) -> list[list[str]]:
    """Format rows as cells: cells([{"way": "a", "seconds": 1.26}], "{way}|{seconds:.1f}") is [["a", "1.3"]]."""
    return [[cell.format_map(row) for cell in formats.split("|")] for row in rows]


def print_json(result: Json) -> None:
    """Print one line of JSON with six significant digits, more than any measurement here has."""
    print(json.dumps(_rounded(result)), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def megabytes(count: int | None) -> str:
    """Format bytes as MB (10⁶ bytes), or a dash for None."""
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


def machine() -> Json:
    """Facts that figures depend on: processor, GPU, packages, threads, and the load before the run."""
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
        "driver": _first_output_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "commit": _first_output_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "threads": torch.get_num_threads(),
        "spin": f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', '')}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
    }


def machine_card(facts: Json) -> str:
    gpu = "no GPU"
    if facts["gpu"]:
        gpu = (
            f"{facts['gpu']}, {facts['gpu_bytes'] / 2**30:.0f} GiB (CUDA build {facts['cuda_build']}, "
            f"driver {facts['driver']})"
        )
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    return (
        f"Machine   {facts['cpu']}, {facts['usable_cores']} of {facts['cores']} cores, {gpu}; {facts['system']}\n"
        f"          {facts['threads']} threads, {facts['spin']}, "
        f"load average before: {facts['load_before']}\n"
        f"Software  Python {facts['python']}, {packages}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _first_output_line(*command: str) -> str | None:
    """The first line that a command prints; None if it is missing or fails."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """The version of each package; None for one that is not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
