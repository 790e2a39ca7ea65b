"""Compare the engines on the same weights and texts: documents/s, latency of a lone query, agreement, setup, memory.

Each engine has a process of its own, with its packages' defaults for threads and memory. Only one works at a time, in
interleaved rounds.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers import engines, worker
from benchmarks.peers.engines import Engine
from benchmarks.peers.process import EngineProcess, Turns
from benchmarks.report import Json, Sample, cells, interleaved, log, median, megabytes, percentile, table
from e5.vectors import Vectors
from e5_cog.server import python_path

Key = tuple[str, int | None]
"""An engine's label and its batch size for documents; None for the queries."""
Samples = Mapping[Key, Sequence[Sample[Json]]]


@dataclass(frozen=True)
class Texts:
    """Without prompts. `tokens`: of all documents, with prompts."""

    documents: list[str]
    queries: list[str]
    tokens: int


def measure(pythons: Mapping[Engine, str], model: str, texts: Texts, folder: Path, rounds: int, starts: int) -> Json:
    """`pythons`: the interpreter of each engine. `starts`: of each process, for the setup time.

    `folder`: has the subfolders that the engines read; gets the texts and the logs.
    """
    (folder / worker.TEXTS).write_text(json.dumps(asdict(texts)), "utf-8")
    with ExitStack() as stack:
        setups: dict[str, list[float]] = {engine.label: [] for engine in pythons}
        for number in range(1, starts + 1):
            log(f"engines: start {number} of {starts} of each engine …")
            processes = {}
            for engine, python in pythons.items():
                process = EngineProcess(
                    _command(engine, python, model, folder), _log_file(engine, folder), environment()
                )
                setups[engine.label].append(process.setup_seconds)
                if number < starts:
                    process.close()
                else:
                    processes[engine.label] = stack.enter_context(process)
        turns = Turns(processes)
        log(f"engines: 1 + {rounds} rounds …")
        samples = interleaved(_actions(pythons, turns), rounds, after_round=_log_round)
        batches = {engine.label: _fastest(engine, samples) for engine in pythons}
        vectors = {label: worker.vectors(turns.ask(label, "vectors", batch=batches[label])) for label in processes}
        peaks = {label: turns.ask(label, "peak")["bytes"] for label in processes}
    reference = engines.REFERENCE if engines.REFERENCE in vectors else next(iter(vectors))
    rows = [
        {
            "engine": engine.name,
            "dtype": processes[engine.label].facts["dtype"] or engine.dtype,
            "packages": processes[engine.label].facts["packages"],
            **_speed(engine, batches[engine.label], samples, len(texts.documents)),
            "min_cosine": min_cosine(vectors[engine.label], vectors[reference]),
            "setup_seconds": median(setups[engine.label]),
            "peak_bytes": peaks[engine.label],
        }
        for engine in pythons
    ]
    return {
        "documents": len(texts.documents),
        "tokens": texts.tokens,
        "queries": len(texts.queries),
        "rounds": rounds,
        "starts": starts,
        "reference": reference,
        "idle_share_of_a_core": turns.idle_share,
        "engines": rows,
    }


def _command(engine: Engine, python: str, model: str, folder: Path) -> list[str]:
    return [python, "-m", "benchmarks.peers.worker", engine.label, model, str(folder)]


def _log_round(samples: Samples) -> None:
    log(f"engines: round {len(next(iter(samples.values())))} is done")


def _log_file(engine: Engine, folder: Path) -> Path:
    return folder / f"{engine.label.replace(' ', '-')}.log"


def environment() -> dict[str, str]:
    """Of a process in the other environment: it imports this repository, and downloads nothing."""
    return os.environ | {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}


def _actions(chosen: Iterable[Engine], turns: Turns) -> dict[Key, Callable[[int], Json]]:
    actions: dict[Key, Callable[[int], Json]] = {}
    for engine in chosen:
        actions[engine.label, None] = _asking(turns, engine.label, "queries")
        for batch in engine.batches:
            actions[engine.label, batch] = _asking(turns, engine.label, "documents", batch=batch)
    return actions


def _asking(turns: Turns, label: str, question: str, **arguments: int) -> Callable[[int], Json]:
    return lambda _: turns.ask(label, question, **arguments)


def _seconds(samples: Iterable[Sample[Json]]) -> list[float]:
    """The engine's own time, without the exchange with its process."""
    return [sample.value["seconds"] for sample in samples]


def _fastest(engine: Engine, samples: Samples) -> int:
    return min(engine.batches, key=lambda batch: median(_seconds(samples[engine.label, batch])))


def _speed(engine: Engine, batch: int, samples: Samples, count: int) -> Json:
    latencies = [seconds for sample in samples[engine.label, None] for seconds in sample.value["seconds"]]
    cores = [sample.value["cpu_seconds"] / sample.value["seconds"] for sample in samples[engine.label, batch]]
    return {
        "batch_texts": batch,
        "seconds": _seconds(samples[engine.label, batch]),
        "documents_per_second": count / median(_seconds(samples[engine.label, batch])),
        "slower_batches": {
            str(other): count / median(_seconds(samples[engine.label, other]))
            for other in engine.batches
            if other != batch
        },
        "cores": median(cores),
        "query_p50_milliseconds": percentile(latencies, 50) * 1e3,
        "query_p90_milliseconds": percentile(latencies, 90) * 1e3,
    }


def min_cosine(vectors: Vectors, reference: Vectors) -> float:
    """The smallest cosine between two rows of the same index, in float64, where NaN stays NaN."""
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def card(result: Json) -> str:
    head = ["engine", "dtype", "docs/s", "batch", "cores", "query p50 ms", "p90 ms", "min cosine", "setup s", "peak MB"]
    formats = "{engine}|{dtype}|{documents_per_second:.1f}|{batch}|{cores:.2f}|{query_p50_milliseconds:.1f}|"
    formats += "{query_p90_milliseconds:.1f}|{min_cosine:.5f}|{setup_seconds:.1f}|{peak}"
    rows = [
        row | {"batch": row["batch_texts"] or "–", "peak": megabytes(row["peak_bytes"]).removesuffix(" MB")}
        for row in result["engines"]
    ]
    return "\n".join(
        [
            f"Engines: {result['documents']} documents ({result['tokens']:,} tokens) in one call, {result['queries']} "
            f"queries one by one; a process for each engine; interleaved rounds: {result['rounds']}",
            table(head, cells(rows, formats), text_columns=2),
            "  Batch: in texts, the fastest of those tried; –: the engine chooses. Cores: CPU time / elapsed time.",
            f"  Min cosine: to {result['reference']}, documents and queries. Peak: resident memory with mapped files.",
            f"  Setup: start of the process to its first vector, median of {result['starts']} starts.",
            f"  While one engine worked, all others together used {result['idle_share_of_a_core']:.1%} of a core.",
            f"  Packages: {_packages(result['engines'])}",
        ]
    )


def _packages(rows: Iterable[Json]) -> str:
    """Each version once; two versions of a package if the environments differ."""
    versions = {f"{name} {version}" for row in rows for name, version in row["packages"].items() if version}
    return ", ".join(sorted(versions))
