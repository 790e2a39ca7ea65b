"""Loading: every way to bring the files' tensors to the device, and whole loads, beside what the disk and memory allow.

The limit is the same files read by threads into memory that is used again and again: bytes over its bandwidth. "cold"
is after the files were dropped from the page cache (checked with mincore), "warm" with them in it. Each way and each
bandwidth takes its turn in every round. Whole loads run in fresh processes, from a process that has imported torch and
transformers and knows its device to parameters that are there; in the device's default dtype.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.report import Json, Keep, discard, log, median, megabytes, table
from e5 import catalog
from e5.weights import checkpoint, reading
from e5.weights.files import LocalWeights

READERS = (4, 16)
"""Threads of the raw reads; the fastest number is the limit, so that it does not rest on this package's own choice."""
PART_BYTES = 16 << 20
STATES = ("cold", "warm")
STILL_THERE = 0.01
"""The largest share of a file's pages in the page cache at which it counts as cold."""
STATUS = Path("/proc/self/status")

Tensors = dict[str, Tensor]


def measure(
    model: catalog.Model,
    found: LocalWeights,
    device: torch.device,
    rounds: int,
    folder: Path,
    keep: Keep = discard,
) -> Json:
    """Medians of `rounds`. `folder`: an empty one, for the merged checkpoint where there is an adapter to merge."""
    files = checkpoint.shards(found.checkpoint)
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
    for loads in _whole_loads(model, found, device, rounds, folder, result["bandwidth_bytes_per_second"]):
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
    head = ["e5.network.model.load", "files", "cold s", "limit", "warm s", "limit", "of which merge", "peak / weights"]
    return "\n".join(
        [
            f"Loading: {megabytes(result['bytes'])} of files to {result['device']}; medians of interleaved rounds: "
            f"{result['rounds']}",
            table(["all tensors, as stored", "cold s", "warm s", "cold GB/s", "warm GB/s"], rows),
            table(head, whole),
            "  raw: into memory used again, on the host; limit: bytes that are needed / the fastest raw read",
            *([f"  not installed: {', '.join(result['skipped'])}"] if result["skipped"] else []),
        ]
    )


_LOAD_FIGURES = ("cold_seconds", "cold_limit_seconds", "warm_seconds", "warm_limit_seconds", "merge_seconds")


def _fastest(size: int, seconds: Sequence[float | None]) -> float | None:
    return max((size / one for one in seconds if one is not None), default=None)


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
    """Median seconds of each way, cold and warm; None for cold where the files stay in the page cache.

    One warm call of each comes first: libraries load, GPUs allocate.
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
    return {name: {state: median(of) if of else None for state, of in by.items()} for name, by in taken.items()}


def drop(files: Sequence[Path]) -> bool:
    """Take the files out of the page cache. Returns whether they are out: a file that is mapped stays."""
    if not hasattr(os, "posix_fadvise") or sys.platform != "linux":
        return False
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return all(resident(path) <= STILL_THERE for path in files)
    except OSError:  # a sandboxed kernel without mincore: nobody knows what is cached
        return False


def resident(path: Path) -> float:
    """The share of a file's pages that is in the page cache. Linux alone."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    state = (ctypes.c_ubyte * pages)()
    # A private mapping is writable for ctypes, which asks for that, and touches no page of it.
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(size), state)
        del start  # the mapping cannot be closed while it is referred to
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return float((np.frombuffer(memoryview(state), np.uint8) & 1).mean())


def _raw(files: Sequence[Path], threads: int) -> Callable[[], None]:
    """The files' bytes into one buffer a thread, in parts, in order."""
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
    """Each brings all tensors to the device in the dtype of the file, waits for them, and lets them go."""

    def whole(load: Callable[[], Tensors]) -> Callable[[], None]:
        def call() -> None:
            tensors = load()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            del tensors
            if device.type == "cuda":
                torch.cuda.empty_cache()

        return call

    def ahead() -> Tensors:
        stored = [one for path in files for one in reading.stored(path)]
        return {
            one.name: tensor.to(device, copy=True) for one, tensor in reading.read(stored, pin=device.type == "cuda")
        }

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

    loaders = {"this package, read ahead": whole(ahead), "mapped file, copied": whole(mapped)}
    if _has("runai_model_streamer"):
        loaders["runai-model-streamer"] = whole(runai)
    if _has("fastsafetensors"):
        loaders["fastsafetensors, no GDS"] = whole(fast)
    return loaders


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _whole_loads(
    model: catalog.Model,
    found: LocalWeights,
    device: torch.device,
    rounds: int,
    folder: Path,
    bandwidth: dict[str, float | None],
) -> Iterator[list[Json]]:
    """A row for each source, after each process that has measured one."""
    sources = {found.source: found}
    if found.adapter is not None:
        from e5.network.device import choose_dtype
        from e5.weights.files import in_folder
        from e5.weights.merge import Merge

        log("loading: merging base and adapter into one checkpoint …")
        merged = Merge(found, choose_dtype(None, device), device).into(folder)
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


def _files(found: LocalWeights) -> list[Path]:
    """All that a load reads and that is large."""
    adapters = found.adapter.glob("adapter_model.*") if found.adapter else ()
    return [*checkpoint.shards(found.checkpoint), *adapters]


def _needed(found: LocalWeights) -> int:
    """Bytes that a load cannot do without: the weights' and the adapter's, not those of a head."""
    shards = (one for path in checkpoint.shards(found.checkpoint) for one in reading.stored(path))
    base = sum(one.size for one in shards if checkpoint.is_weight(checkpoint.bare_name(one.name)))
    return base + sum(path.stat().st_size for path in _files(found) if path.parent == found.adapter)


def _spawn(model: catalog.Model, found: LocalWeights, device: torch.device) -> Json:
    paths = [found.source, *map(str, (found.checkpoint, found.tokenizer)), found.adapter and str(found.adapter)]
    command = [sys.executable, "-m", "benchmarks.loading", json.dumps([model.name, str(device), paths])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures a load ended with status {done.returncode}: see above")
    measured: Json = json.loads(done.stdout.splitlines()[-1])
    return measured


def _child(name: str, device_name: str, paths: list[Any]) -> Json:
    from e5.network.device import choose_dtype
    from e5.network.load import load

    source, folder, tokenizer, adapter = paths
    found = LocalWeights(source, Path(folder), Path(tokenizer), adapter and Path(adapter))
    device = torch.device(device_name)
    torch.ones(1, device=device)  # the GPU's context belongs to no load
    with _peak(device) as peak:
        started = time.perf_counter()
        packed, phases = load(catalog.get(name), found, device, choose_dtype(None, device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "merge_seconds": phases["merge"],
        "weights_bytes": packed.weights_bytes,
        "peak_bytes": peak[0],
    }


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int | None]]:
    """One number, once the block is left: bytes that the block brought to the device at its peak, at most.

    On a GPU what torch allocated; on a CPU the growth of RssAnon, read every 2 ms, with the code that was imported.
    """
    found: list[int | None] = [None]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device) - before
        return
    if not STATUS.exists():
        yield found
        return
    stop, before, highest = threading.Event(), _anonymous(), [0]

    def sample() -> None:
        while not stop.wait(0.002):
            highest[0] = max(highest[0], _anonymous())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield found
    stop.set()
    thread.join()
    found[0] = max(highest[0], _anonymous()) - before


def _anonymous() -> int:
    line = next(one for one in STATUS.read_text("ascii").splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_child(*json.loads(sys.argv[1]))))
