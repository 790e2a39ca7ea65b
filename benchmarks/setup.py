"""Setup: seconds and peak memory of each phase, from a fresh process to the first prediction.

Host memory is RssAnon (excludes mapped files), sampled every 2 ms, so shorter peaks may be missed. GPU memory is what
torch allocated. The files are in the page cache, as far as they fit.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.memory import host_memory
from benchmarks.report import Json, log, median, megabytes, table

PHASES = ("import", "locate", "load", "merge", "first prediction")
MEMORY_PHASES = ("import", "load", "first prediction")
"""Locating, loading and merging are one phase here, because tensors are merged while they load."""


def measure(model: str, weights: Path | None, device: str, rounds: int) -> Json:
    """Medians of `rounds` fresh processes, in the device's default dtype."""
    log(f"setup: {rounds} fresh processes …")
    options = {"model": model, "weights": None if weights is None else str(weights), "device": device}
    runs = [_spawn(options) for _ in range(rounds)]
    facts = {name: runs[0][name] for name in ("device", "dtype", "source", "weights_bytes")}
    # Memory on the device that holds the weights, to compare with their size.
    memory = "cuda" if facts["device"].startswith("cuda") else "host"
    peak, kept = ([_added_by_loading(run, memory, kind) for run in runs] for kind in ("peak", "kept"))
    added = _median_bytes(peak)
    return {
        "rounds": rounds,
        **facts,
        "seconds": {phase: median([run["seconds"][phase] for run in runs]) for phase in PHASES},
        "total_seconds": median([sum(run["seconds"].values()) for run in runs]),
        "host_peak_bytes": _peaks(runs, "host"),
        "cuda_peak_bytes": _peaks(runs, "cuda"),
        "load_added_peak_bytes": added,
        "load_added_kept_bytes": _median_bytes(kept),
        "peak_to_weights_ratio": None if added is None else added / facts["weights_bytes"],
    }


def card(result: Json) -> str:
    memory = [kind for kind in ("host", "cuda") if result[f"{kind}_peak_bytes"]["load"] is not None]
    rows = [
        [phase, f"{result['seconds'][phase]:.3f}"]
        + [megabytes(result[f"{kind}_peak_bytes"].get(phase)) for kind in memory]
        for phase in PHASES
    ]
    rows.append(["total", f"{result['total_seconds']:.3f}", *("" for _ in memory)])
    lines = [
        f"Setup: source {result['source']}, {result['dtype']} on {result['device']}; medians of "
        f"{result['rounds']} fresh processes; files in the page cache",
        table(["phase", "s", *(f"peak {kind}" for kind in memory)], rows),
        f"  weights {megabytes(result['weights_bytes'])}",
    ]
    if memory:
        lines[-1] += (
            f"; loading added {megabytes(result['load_added_peak_bytes'])} at its peak = "
            f"{result['peak_to_weights_ratio']:.2f} × weights, of which {megabytes(result['load_added_kept_bytes'])} "
            "stayed (on the host including tokenizer and code)"
        )
    return "\n".join(lines)


def _peaks(runs: list[Json], memory: str) -> dict[str, int | None]:
    return {phase: _median_bytes([run[f"{memory}_peak_bytes"][phase] for run in runs]) for phase in MEMORY_PHASES}


def _added_by_loading(run: Json, memory: str, kind: str) -> int | None:
    """Bytes that loading added to those that the imports left: at its peak, or kept at its end."""
    imported, loaded = run[f"{memory}_kept_bytes"]["import"], run[f"{memory}_{kind}_bytes"]["load"]
    return None if imported is None or loaded is None else loaded - imported


def _median_bytes(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(median(known)) if known else None


def _spawn(options: Json) -> Json:
    command = [sys.executable, "-m", "benchmarks.setup", json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures the setup exited with status {done.returncode}: see above")
    measured: Json = json.loads(done.stdout.splitlines()[-1])
    return measured


class _Memory:
    """Bytes on the host and on CUDA by phase: the peak, and those still allocated at the end."""

    def __init__(self) -> None:
        self.bytes: dict[str, dict[str, int | None]] = {
            f"{memory}_{kind}_bytes": {} for memory in ("host", "cuda") for kind in ("peak", "kept")
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with host_memory() as host:
            yield
        self.bytes["host_peak_bytes"][name], self.bytes["host_kept_bytes"][name] = host.peak, host.end
        self.bytes["cuda_peak_bytes"][name], self.bytes["cuda_kept_bytes"][name] = _cuda_bytes()


def _cuda_bytes() -> tuple[int | None, int | None]:
    """Bytes allocated by torch: the peak since the last call, and now. None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak, torch.cuda.memory_allocated()


def _child(options: Json) -> Json:
    memory = _Memory()
    started = time.perf_counter()
    with memory.phase("import"):
        from e5.embedder import Embedder, scores
        from e5.prompts import DEFAULT_TASK
        from e5.settings import Settings
    imported = time.perf_counter()
    weights = options["weights"] and Path(options["weights"])
    with memory.phase("load"):
        embedder = Embedder.from_settings(Settings(options["model"], weights, device=options["device"]))
        if embedder.packed.device.type == "cuda":
            import torch

            torch.cuda.synchronize()  # pending copies to the GPU belong to this phase
    loaded = time.perf_counter()
    with memory.phase("first prediction"):
        vectors = embedder.embed_tokens(embedder.tokenize(["warm"], ["up"], DEFAULT_TASK))
        scores(vectors[:1], vectors[1:])
    done = time.perf_counter()
    known = {name: embedder.phases[name] for name in ("locate", "merge")}
    seconds = {"import": imported - started, **known, "load": loaded - imported - sum(known.values())}
    return {
        "seconds": seconds | {"first prediction": done - loaded},
        **memory.bytes,
        "weights_bytes": embedder.packed.weights_bytes,
        "device": embedder.device,
        "dtype": embedder.dtype,
        "source": embedder.source,
    }


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))
