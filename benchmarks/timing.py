"""Timing on a device: by its own events on CUDA, by the wall clock elsewhere."""

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.report import log, median

Action = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what nothing holds any more, so that the next one finds the device's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def times(action: Action, device: torch.device, rounds: int, warm_up: int = 3) -> list[float]:
    """Seconds of each of `rounds` calls, back to back."""
    for _ in range(warm_up):
        action()
    if device.type != "cuda":
        found = []
        for _ in range(rounds):
            started = time.perf_counter()
            action()
            found.append(time.perf_counter() - started)
        return found
    # An event between neighbours: nothing waits, so that a launch never counts where the device is the slower one.
    events: list[Any] = [_event() for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        action()
        event.record()
    events[-1].synchronize()
    return [one.elapsed_time(other) / 1e3 for one, other in itertools.pairwise(events)]


def seconds_each(actions: Sequence[Action], device: torch.device, rounds: int) -> float:
    """Median seconds of one action, when all of them run one after the other, `rounds` times.

    On CUDA as one graph: a product of a few rows takes 8 µs, about what its launch from Python takes.
    """

    def everything() -> None:
        for action in actions:
            action()

    run: Action = everything
    if device.type == "cuda":
        everything()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                everything()
            run = graph.replay
        except RuntimeError as error:
            log(f"no graph of these products ({error}): timed with their launches")
    return median(times(run, device, rounds)) / len(actions)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
