"""Run a program on files of texts as a user does, in a process of its own, and watch the memory of its process tree."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from e5.vectors import Vectors
from e5_cog.repository import ROOT
from e5_cog.server import python_path, stop


@dataclass(frozen=True)
class TreeMemory:
    """Bytes of a process with all processes below it, at one moment after the start.

    `resident`: the sum of what each process has resident, with mapped files; memory that they share counts once for
    each. `own`: without mapped files, which are mostly libraries, and shared memory counts once; 0 if the system does
    not report it.
    """

    seconds: float
    resident: int
    own: int


def tree_memory(root: psutil.Process, started: float) -> TreeMemory:
    resident = own = 0
    with suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                resident, own = resident + process.memory_info().rss, own + _own_bytes(process.pid)
    return TreeMemory(time.time() - started, resident, own)


def _own_bytes(pid: int) -> int:
    """Anonymous memory, and the process's share of the memory that it shares with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:  # it has ended, or this is not Linux
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


@contextmanager
def sampled(pid: int, started: float, interval: float) -> Iterator[list[TreeMemory]]:
    """Sample the memory of a process tree during a block, every `interval` seconds; shorter peaks may be missed."""
    stopped, samples, root = threading.Event(), list[TreeMemory](), psutil.Process(pid)

    def sample() -> None:
        while not stopped.wait(interval):
            samples.append(tree_memory(root, started))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


@dataclass(frozen=True)
class Run:
    """A program that has succeeded. `started`: the time of day in seconds, as files have it."""

    started: float
    seconds: float
    memory: list[TreeMemory]


def run(command: Sequence[str], environment: Mapping[str, str], log: Path, memory_interval: float | None = None) -> Run:
    """Run a Python program to its end. Without an interval its memory is not sampled.

    Raises RuntimeError with the end of its log if it fails.
    """
    started = time.time()
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], env=environment, cwd=ROOT, stdout=file, stderr=file)
    samples: list[TreeMemory] = []
    try:
        if memory_interval is None:
            process.wait()
        else:
            with sampled(process.pid, started, memory_interval) as samples:
                process.wait()
        seconds = time.time() - started
    finally:
        status = stop(process)
    if status:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command[:3])} … exited with status {status}; its log ends with:\n{tail}")
    return Run(started, seconds, samples)


def environment(model: str, checkpoint: Path, threads: int | None = None) -> dict[str, str]:
    """Of a program: this package loads the shared checkpoint in float32. `threads` of torch in each process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("E5_")}
    return {
        **inherited,
        "PYTHONPATH": python_path(),
        "HF_HUB_OFFLINE": "1",
        "E5_MODEL": model,
        "E5_WEIGHTS": str(checkpoint),
        "E5_SOURCE": "merged",
        "E5_DEVICE": "cpu",
        "E5_DTYPE": "float32",
        **({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
    }


def read_vectors(out: Path, ids: Sequence[str], total: int | None = None) -> Vectors:
    """The vectors of an output folder in the order of `ids`: float32 [N, D].

    `total`: rows that there have to be; by default those of `ids` only. Raises RuntimeError for others.
    """
    rows: dict[str, Vectors] = {}
    count, wanted = 0, pa.array(ids)
    for file in sorted(out.glob("*.parquet")):
        table = pq.read_table(file, columns=["id", "vector"])
        count += len(table)
        table = table.filter(pc.is_in(table.column("id"), value_set=wanted))
        if len(table):
            values = table.column("vector").combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            rows |= zip(table.column("id").to_pylist(), values, strict=True)
    expected = len(ids) if total is None else total
    if count != expected or rows.keys() != set(ids):
        raise RuntimeError(f"{out} has {count} rows instead of {expected}, and {len(rows)} of {len(ids)} ids")
    return np.stack([rows[name] for name in ids])
