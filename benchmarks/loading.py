"""Loading: ways to copy the files' tensors to the device, and whole loads, compared with disk and memory bandwidth.

The limit is bytes / bandwidth, with the bandwidth of threads that read the same files into reused memory. "cold": the
files were dropped from the page cache (verified with mincore); "warm": they are in it. Every way runs once per round.
Whole loads run in fresh processes, in the device's default dtype: from a process with torch and transformers imported
and the device initialized, to the model on the device.
"""

import ctypes
import gc
import importlib.util
import itertools
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.memory import HostMemory, anonymous_bytes, host_memory
from benchmarks.report import Json, Keep, discard, log, median, megabytes, table
from e5 import catalog
from e5.weights import checkpoint, reading
from e5.weights.files import LocalWeights

READERS = (4, 16)
"""Threads of the raw reads. The faster of them sets the limit, whatever number this package uses."""
PART_BYTES = 16 << 20
STATES = ("cold", "warm")
MAX_RESIDENT = 0.01
"""A file is cold if at most this share of its pages is in the page cache."""

Tensors = dict[str, Tensor]


def measure(
    model: catalog.Model,
    weights: LocalWeights,
    device: torch.device,
    rounds: int,
    folder: Path,
    keep: Keep = discard,
) -> Json:
    """Medians of `rounds`. `folder`: must be empty; receives the merged checkpoint if there is an adapter."""
    files = checkpoint.shards(weights.checkpoint)
    log(f"loading: {rounds} rounds of raw reads and of each loader …")
    ways: dict[str, Callable[[], object]] = {f"raw, {count} threads": _raw(files, count) for count in READERS}
    loaders = _loaders(files, device)
    raw = list(ways)
    ways |= loaders
    seconds = _rounds(ways, files, rounds)
    size = sum(path.stat().st_size for path in files)
    result: Json = {
        "rounds": rounds,
        "device": str(device),
        "bytes": size,
        "bandwidth_bytes_per_second": {
            state: _fastest(size, [seconds[name][state] for name in raw]) for state in STATES
        },
        "raw": [_row("reader", name, seconds[name], size) for name in raw],
        "loaders": [_row("loader", name, seconds[name], size) for name in loaders],
        "skipped": [name for name in ("runai_model_streamer", "fastsafetensors") if not _has(name)],
    }
    result["loads"] = []
    keep(result)
    for loads in _whole_loads(model, weights, device, rounds, folder, result["bandwidth_bytes_per_second"]):
        result["loads"] = loads
        keep(result)
    return result


def card(result: Json) -> str:
    rows = [
        [row.get("reader") or row["loader"]]
        + [f"{row[f'{state}_seconds']:.3f}" if row[f"{state}_seconds"] else "–" for state in STATES]
        + [_gigabytes(row[f"{state}_bytes_per_second"]) for state in STATES]
        for row in [*result["raw"], *result["loaders"]]
    ]
    whole = [
        [row["source"], megabytes(row["bytes"])]
        + [f"{row[key]:.3f}" if row[key] else "–" for key in _LOAD_FIGURES]
        + [f"{row['peak_to_weights_ratio']:.2f}" if row["peak_to_weights_ratio"] else "–"]
        for row in result["loads"]
    ]
    head = ["e5.network.load", "files", "cold s", "limit", "warm s", "limit", "of which merge", "peak / weights"]
    return "\n".join(
        [
            f"Loading: {megabytes(result['bytes'])} of files to {result['device']}; "
            f"medians of {result['rounds']} interleaved rounds",
            table(["all tensors, as stored", "cold s", "warm s", "cold GB/s", "warm GB/s"], rows),
            table(head, whole),
            "  raw: into reused host memory; limit: required bytes / fastest raw read",
            *([f"  not installed: {', '.join(result['skipped'])}"] if result["skipped"] else []),
        ]
    )


_LOAD_FIGURES = ("cold_seconds", "cold_limit_seconds", "warm_seconds", "warm_limit_seconds", "merge_seconds")


def _fastest(size: int, seconds: Sequence[float | None]) -> float | None:
    return max((size / taken for taken in seconds if taken is not None), default=None)


def _row(kind: str, name: str, seconds: dict[str, float | None], size: int) -> Json:
    row: Json = {kind: name}
    for state in STATES:
        taken = seconds[state]
        row |= {f"{state}_seconds": taken, f"{state}_bytes_per_second": size / taken if taken else None}
    return row


def _gigabytes(rate: float | None) -> str:
    return "–" if rate is None else f"{rate / 1e9:.2f}"


def _rounds(
    ways: dict[str, Callable[[], object]], files: Sequence[Path], rounds: int
) -> dict[str, dict[str, float | None]]:
    """Median seconds of each way, cold and warm; cold is None if the files cannot be dropped from the page cache.

    Each way runs once beforehand, so that libraries are loaded and GPU memory is allocated.
    """
    taken: dict[str, dict[str, list[float]]] = {name: {state: [] for state in STATES} for name in ways}
    for way in ways.values():
        way()
    for number in range(rounds):
        order = list(ways)
        random.Random(number).shuffle(order)
        for name, state in itertools.product(order, STATES):
            gc.collect()
            if state == "cold" and not drop(files):
                continue
            started = time.perf_counter()
            ways[name]()
            taken[name][state].append(time.perf_counter() - started)
    return {
        name: {state: median(samples) if samples else None for state, samples in states.items()}
        for name, states in taken.items()
    }


def drop(files: Sequence[Path]) -> bool:
    """Drop the files from the page cache. Returns whether that worked: files that are mapped stay."""
    if not hasattr(os, "posix_fadvise") or sys.platform != "linux":
        return False
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # dirty pages would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return all(resident(path) <= MAX_RESIDENT for path in files)
    except OSError:  # a sandboxed kernel without mincore: unknown
        return False


def resident(path: Path) -> float:
    """The share of a file's pages that are in the page cache. Linux only."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    state = (ctypes.c_ubyte * pages)()
    # ctypes needs a writable buffer: a private mapping is one, and creating it touches no page.
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(size), state)
        del start  # the mapping cannot be closed while it is referenced
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return float((np.frombuffer(memoryview(state), np.uint8) & 1).mean())


def _raw(files: Sequence[Path], threads: int) -> Callable[[], None]:
    """Read the files in parts, in order, into one buffer per thread."""
    buffers = [memoryview(bytearray(PART_BYTES)) for _ in range(threads)]

    def read() -> None:
        parts = iter([(path, start) for path in files for start in range(0, path.stat().st_size, PART_BYTES)])
        lock, opened = threading.Lock(), {path: os.open(path, os.O_RDONLY) for path in files}

        def work(buffer: memoryview) -> None:
            while True:
                with lock:
                    part = next(parts, None)
                if part is None:
                    return
                os.preadv(opened[part[0]], [buffer], part[1])

        workers = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for file in opened.values():
            os.close(file)

    return read


def _loaders(files: Sequence[Path], device: torch.device) -> dict[str, Callable[[], None]]:
    """Ways to copy all tensors to the device in the files' dtype. Each waits for the copies and frees them."""

    def load_and_free(load: Callable[[], Tensors]) -> Callable[[], None]:
        def call() -> None:
            tensors = load()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            del tensors
            if device.type == "cuda":
                torch.cuda.empty_cache()

        return call

    def read_ahead() -> Tensors:
        stored = [tensor for path in files for tensor in reading.read_header(path)]
        stream = reading.read(stored, pin=device.type == "cuda")
        return {source.name: tensor.to(device, copy=True) for source, tensor in stream}

    def mapped() -> Tensors:
        tensors: Tensors = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name).to(device, copy=True) for name in file.offset_keys()}
        return tensors

    def runai() -> Tensors:
        from runai_model_streamer import SafetensorsStreamer

        with SafetensorsStreamer() as streamer:
            streamer.stream_files([str(path) for path in files])
            return {name: tensor.to(device, copy=True) for name, tensor in streamer.get_tensors()}

    def fast() -> Tensors:
        from fastsafetensors import SafeTensorsFileLoader, SingleGroup

        loader = SafeTensorsFileLoader(SingleGroup(), device, nogds=True)
        loader.add_filenames({0: [str(path) for path in files]})
        buffer = loader.copy_files_to_device()
        tensors = {name: buffer.get_tensor(name).clone() for name in list(buffer.key_to_rank_lidx)}
        buffer.close()
        loader.close()
        return tensors

    loaders = {"this package, read ahead": load_and_free(read_ahead), "mapped file, copied": load_and_free(mapped)}
    if _has("runai_model_streamer"):
        loaders["runai-model-streamer"] = load_and_free(runai)
    if _has("fastsafetensors"):
        loaders["fastsafetensors, no GDS"] = load_and_free(fast)
    return loaders


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _whole_loads(
    model: catalog.Model,
    weights: LocalWeights,
    device: torch.device,
    rounds: int,
    folder: Path,
    bandwidth: dict[str, float | None],
) -> Iterator[list[Json]]:
    """Yield a row per source, again after each measured process."""
    sources = {weights.source: weights}
    if weights.adapter is not None:
        from e5.network.device import choose_dtype
        from e5.weights.files import in_folder
        from e5.weights.merge import write_merged

        log("loading: merging base and adapter into one checkpoint …")
        merged = write_merged(weights, folder, choose_dtype(None, device), device)
        sources["merged"] = in_folder(model, merged, "merged")
    log(f"loading: {rounds} fresh processes for each source, cold and warm …")
    runs: dict[str, dict[str, list[Json]]] = {source: {state: [] for state in STATES} for source in sources}
    for _ in range(rounds):
        for source, files in sources.items():
            for state in STATES:
                if state == "warm" or drop(_files(files)):
                    runs[source][state].append(_spawn(model, files, device))
                    yield [
                        _load_row(name, sources[name], runs[name], bandwidth)
                        for name in sources
                        if any(runs[name].values())
                    ]


def _load_row(
    source: str, files: LocalWeights, runs: dict[str, list[Json]], bandwidth: dict[str, float | None]
) -> Json:
    row: Json = {"source": source, "bytes": _needed(files)}
    for state in STATES:
        seconds = [run["seconds"] for run in runs[state]]
        rate = bandwidth[state]
        row[f"{state}_seconds"] = median(seconds) if seconds else None
        row[f"{state}_limit_seconds"] = row["bytes"] / rate if rate else None
    measured = runs["warm"] or runs["cold"]
    peaks = [run["peak_bytes"] for run in measured if run["peak_bytes"] is not None]
    row["merge_seconds"] = median([run["merge_seconds"] for run in measured])
    row["weights_bytes"] = measured[0]["weights_bytes"]
    row["peak_bytes"] = round(median(peaks)) if peaks else None
    row["peak_to_weights_ratio"] = row["peak_bytes"] / row["weights_bytes"] if peaks else None
    return row


def _files(weights: LocalWeights) -> list[Path]:
    """The large files that a load reads."""
    adapters = weights.adapter.glob("adapter_model.*") if weights.adapter else ()
    return [*checkpoint.shards(weights.checkpoint), *adapters]


def _needed(weights: LocalWeights) -> int:
    """Bytes that a load must read: base weights without heads, and the adapter."""
    base = sum(stored.size for stored in checkpoint.stored_weights(weights.checkpoint))
    return base + sum(path.stat().st_size for path in _files(weights) if path.parent == weights.adapter)


def _spawn(model: catalog.Model, weights: LocalWeights, device: torch.device) -> Json:
    adapter = weights.adapter and str(weights.adapter)
    paths = [weights.source, str(weights.checkpoint), str(weights.tokenizer), adapter]
    command = [sys.executable, "-m", "benchmarks.loading", json.dumps([model.name, str(device), paths])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures a load exited with status {done.returncode}: see above")
    measured: Json = json.loads(done.stdout.splitlines()[-1])
    return measured


def _child(name: str, device_name: str, paths: list[Any]) -> Json:
    """Measure one load. `peak_bytes`: on a GPU what torch allocated, on a CPU RssAnon including imported code."""
    from e5.network.device import choose_dtype
    from e5.network.load import load

    source, folder, tokenizer, adapter = paths
    files = LocalWeights(source, Path(folder), Path(tokenizer), adapter and Path(adapter))
    device = torch.device(device_name)
    torch.ones(1, device=device)  # creates the GPU's context, which is not part of a load
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else anonymous_bytes()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with nullcontext(HostMemory()) if on_gpu else host_memory() as host:  # sampling would slow the GPU's load
        started = time.perf_counter()
        packed, phases = load(catalog.get(name), files, device, choose_dtype(None, device))
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else host.peak
    return {
        "seconds": seconds,
        "merge_seconds": phases["merge"],
        "weights_bytes": packed.weights_bytes,
        "peak_bytes": None if before is None or peak is None else peak - before,
    }


if __name__ == "__main__":
    print(json.dumps(_child(*json.loads(sys.argv[1]))))
