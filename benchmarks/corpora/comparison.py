"""Compare whole programs on the same files and weights: scripts/corpus.py, and what a user would write instead of it.

The first run of each program warms up: it is not timed, its memory is measured, and its vectors are compared. Start-up
is the time of the same program with a few texts.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.corpora import programs
from benchmarks.corpora.alternatives import RAY_BATCH, Job
from benchmarks.corpora.programs import Run
from benchmarks.report import Json, Sample, cells, interleaved, log, median, table
from benchmarks.throughput import RIVAL_BATCHES, agreement
from e5 import prompts
from e5.catalog import Model
from e5.settings import usable_cores
from e5.vectors import Vectors

PROCESSES = 2
"""Of the programs that have several."""
TRIED_TEXTS = 128
MEMORY_INTERVAL = 0.2
CORPUS, WORKERS = "corpus.py", f"corpus.py --workers {PROCESSES}"
LIBRARY = "embed_documents, one call"
POOL, RAY = "sentence-transformers, pool", "Ray Data, sentence-transformers"
REFERENCE = POOL
"""Whose vectors the others are compared with."""
PAIRS = ((CORPUS, LIBRARY), (CORPUS, POOL), (WORKERS, POOL), (CORPUS, RAY), (WORKERS, RAY))
ALL, FEW = "all", "few"
Key = tuple[str, str]
"""A program, and which of the inputs it reads."""


@dataclass(frozen=True)
class Input:
    """JSONL files of {id, text} in a folder. `ids`: of all rows, in their order."""

    files: list[str]
    ids: list[str]


@dataclass(frozen=True)
class Program:
    """`arguments`: of Python, for an input's files and the output folder."""

    arguments: Callable[[list[str], Path], list[str]]
    environment: dict[str, str]


def measure(model: Model, checkpoint: Path, inputs: Mapping[str, Input], folder: Path, rounds: int) -> Json:
    """`inputs`: ALL and FEW. `folder`: an empty one for outputs and logs. Without rounds the first runs count.

    Raises RuntimeError if a program fails.
    """
    tried = _try_batches(model, checkpoint, inputs[ALL], folder)
    batch = min(tried, key=tried.__getitem__)
    chosen = _programs(model, checkpoint, batch)
    out = folder / "vectors"

    def run(name: str, size: str, memory_interval: float | None = None) -> Run:
        arguments = chosen[name].arguments(inputs[size].files, out)
        return programs.run(arguments, chosen[name].environment, folder / "log", memory_interval)

    def timed(name: str, size: str, _: int) -> float:
        done = run(name, size)
        shutil.rmtree(out)
        return done.seconds

    vectors: dict[str, Vectors] = {}
    warm: dict[str, Run] = {}
    for name in chosen:
        log(f"programs: {name}, warming up …")
        warm[name] = run(name, ALL, MEMORY_INTERVAL)
        vectors[name] = programs.read_vectors(out, inputs[ALL].ids)
        shutil.rmtree(out)
    actions = {(name, size): partial(timed, name, size) for name in chosen for size in (ALL, FEW)}
    samples = interleaved(actions, rounds, warm_up=0, after_round=_log_round)
    few, count = len(inputs[FEW].ids), len(inputs[ALL].ids)
    rows: list[Json] = []
    for name in chosen:
        total, start = ([sample.value for sample in samples[name, size]] for size in (ALL, FEW))
        peaks = {kind: max(getattr(each, kind) for each in warm[name].memory) for kind in ("resident", "own")}
        rows.append(
            {"program": name}
            | speed(count, few, total or [warm[name].seconds], start)
            | {f"peak_{kind}_bytes": peak for kind, peak in peaks.items()}
            | agreement(vectors[name], vectors[REFERENCE])
        )
    return {
        "texts": count,
        "few_texts": few,
        "files": len(inputs[ALL].files),
        "rounds": rounds,
        "processes": PROCESSES,
        "threads_per_process": _threads(),
        "rival_batch": batch,
        "rival_batches_cpu_seconds": {str(size): used for size, used in tried.items()},
        "programs": rows,
        "ratios": _ratios(rows),
    }


def speed(count: int, few: int, total: Sequence[float], start: Sequence[float]) -> Json:
    """Medians, from the seconds of all rounds with `count` texts and with `few`.

    The speed without start-up is None where there is no start-up, or it is not below the total.
    """
    started = median(start) if start else None
    work = 0.0 if started is None else median(total) - started
    return {
        "seconds": list(total),
        "median_seconds": median(total),
        "start_seconds": started,
        "texts_per_second": count / median(total),
        "texts_per_second_without_start": (count - few) / work if work > 0 else None,
    }


def _log_round(samples: Mapping[Key, Sequence[Sample[float]]]) -> None:
    log(f"programs: round {len(next(iter(samples.values())))} is done")


def _threads() -> int:
    return max(1, usable_cores() // PROCESSES)


def _programs(model: Model, checkpoint: Path, batch: int) -> dict[str, Program]:
    ours = programs.environment(model.name, checkpoint)
    several = programs.environment(model.name, checkpoint, _threads())
    prompt = prompts.document_prompt(model.prompt, "")

    def corpus(*options: str) -> Program:
        return Program(
            lambda files, out: ["scripts/corpus.py", "run", *files, "--out", str(out), "--id-column", "id", *options],
            ours,
        )

    def alternative(name: str, environment: dict[str, str]) -> Program:
        return Program(
            lambda files, out: _command(name, Job(files, str(out), str(checkpoint), prompt, [batch], PROCESSES)),
            environment,
        )

    return {
        CORPUS: corpus(),
        WORKERS: corpus("--workers", str(PROCESSES)),
        LIBRARY: alternative("library", ours),
        POOL: alternative("pool", several),
        RAY: alternative("ray_data", several),
    }


def _command(name: str, job: Job) -> list[str]:
    return ["-m", "benchmarks.corpora.alternatives", name, json.dumps(asdict(job))]


def _try_batches(model: Model, checkpoint: Path, texts: Input, folder: Path) -> dict[int, float]:
    """CPU seconds of one process of sentence-transformers for each batch size, on the first texts."""
    log("programs: trying batch sizes of sentence-transformers …")
    lines = [line for file in texts.files for line in Path(file).read_text("utf-8").splitlines()]
    sample, out = folder / "sample.jsonl", folder / "batches.json"
    sample.write_text("\n".join(lines[:TRIED_TEXTS]), "utf-8")
    prompt = prompts.document_prompt(model.prompt, "")
    job = Job([str(sample)], str(out), str(checkpoint), prompt, list(RIVAL_BATCHES["cpu"]), PROCESSES)
    environment = programs.environment(model.name, checkpoint, _threads())
    programs.run(_command("try_batches", job), environment, folder / "log")
    return {int(batch): float(used) for batch, used in json.loads(out.read_text("ascii")).items()}


def _ratios(rows: Sequence[Json]) -> list[Json]:
    """Of texts/s, for each of PAIRS; None where a program was too fast to tell it from its start."""
    speeds = {row["program"]: (row["texts_per_second"], row["texts_per_second_without_start"]) for row in rows}
    result = []
    for of, to in PAIRS:
        whole, without_start = (a / b if a and b else None for a, b in zip(speeds[of], speeds[to], strict=True))
        result.append({"of": of, "to": to, "whole": whole, "without_start": without_start})
    return result


def card(result: Json) -> str:
    head = ["program", "s", "range s", "start s", "texts/s", "no start", "peak MB", "own MB", "max rel. L2"]
    formats = "{program}|{median_seconds:.1f}|{fastest:.1f}–{slowest:.1f}|{start}|{texts_per_second:.1f}|"
    formats += "{no_start}|{peak:,.0f}|{own}|{max_relative_l2:.1e}"
    rows = [
        row
        | {"fastest": min(row["seconds"]), "slowest": max(row["seconds"]), "peak": row["peak_resident_bytes"] / 1e6}
        | {"own": _number(row["peak_own_bytes"] / 1e6, ",.0f"), "start": _number(row["start_seconds"], ".1f")}
        | {"no_start": _number(row["texts_per_second_without_start"], ".1f")}
        for row in result["programs"]
    ]
    ratios = [
        [f"{row['of']} / {row['to']}", _number(row["whole"], ".2f"), _number(row["without_start"], ".2f")]
        for row in result["ratios"]
    ]
    tried = ", ".join(f"{size}: {used:.1f}" for size, used in result["rival_batches_cpu_seconds"].items())
    processes, threads = result["processes"], result["threads_per_process"]
    return "\n".join(
        [
            f"Programs: {result['texts']:,} documents, from {result['files']} JSONL files to Parquet, float32; "
            f"interleaved rounds: {result['rounds']}",
            table(head, cells(rows, formats)),
            "  ratio of texts/s, medians:",
            table(["", "with start", "no start"], ratios),
            f"  Start: the same program with {result['few_texts']} texts. Peak: resident memory of all its processes, "
            "with mapped files.",
            "  Own: without mapped files, and memory that processes share counts once. Max rel. L2: to "
            f"{REFERENCE}, by id;",
            f"  the lowest cosine of all is {min(row['min_cosine'] for row in result['programs']):.7f}.",
            f"  Threads of torch: all cores for one process; {threads} each for {processes} processes. Ray Data: "
            f"{processes} actors, which get {RAY_BATCH} texts at a time.",
            f"  sentence-transformers: batches of {result['rival_batch']}, the fastest. CPU s for {TRIED_TEXTS} or "
            f"fewer texts in one process, by batch: {tried}.",
        ]
    )


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value else "–"
