"""Timing on a device: CUDA events on a GPU, the wall clock elsewhere."""

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.report import log, median

Action = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Release unreferenced memory on the host and the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def times(action: Action, device: torch.device, rounds: int, warm_up: int = 3) -> list[float]:
    """Seconds of each of `rounds` back-to-back calls."""
    for _ in range(warm_up):
        action()
    if device.type != "cuda":
        durations = []
        for _ in range(rounds):
            started = time.perf_counter()
            action()
            durations.append(time.perf_counter() - started)
        return durations
    # One event between calls, without synchronising: launch time counts only where the host is slower than the device.
    events: list[Any] = [_event() for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        action()
        event.record()
    events[-1].synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(events)]


def seconds_each(actions: Sequence[Action], device: torch.device, rounds: int) -> float:
    """Median seconds per action when all of them run in sequence, `rounds` times.

    On CUDA they run as one graph: a product of a few rows takes 8 µs, about as long as its launch from Python.
    """

    def run_all() -> None:
        for action in actions:
            action()

    timed: Action = run_all
    if device.type == "cuda":
        run_all()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run_all()
            timed = graph.replay
        except RuntimeError as error:
            log(f"cannot record a graph ({error}): the times include kernel launches")
    return median(times(timed, device, rounds)) / len(actions)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
