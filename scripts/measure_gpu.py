"""Everything that is to be known about the flagship on a GPU, in one command with a time limit; or in three.

    python scripts/measure_gpu.py --to out --part 1     ceilings, throughput, latency; and the tests that need CUDA
    python scripts/measure_gpu.py --to out --part 2     what each part of the engine brings; equality at full size
    python scripts/measure_gpu.py --to out --part 3     setup, loading, serving, a profile, the merge, quality by dtype
    python scripts/measure_gpu.py --to out --dry-run    all of it on the embedded model, tiny, to see that it runs

Each step is a process of its own with its own limit: one that fails or is late is noted, and the next one runs. The
weights are drawn once a run. Standard output is a line a step as it ends, then a table with the figures against the
goals; what the steps print is in the folder's logs.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import gpu_figures
from scripts.bench_report import Json, table

ROOT = Path(__file__).resolve().parents[1]
FLAGSHIP, EMBEDDED = "e5-mistral-7b-instruct", "e5-mistral-tiny"
MINUTES = 9.5
MARGIN_SECONDS, LEAST_SECONDS = 8, 20
"""Kept for the table at the end; and what is too little to begin a step with."""
LOG_BYTES = 15 << 20
DRAW_SECONDS = (20, 90)
"""Estimate for 14.5 GB in 16 bits: drawing them takes a second; the disk's rate, .2 to 1 GB/s, makes the difference."""


@dataclass(frozen=True)
class Step:
    """One process: its arguments for Python, the file that it logs to, how long it may take, and the step it needs."""

    name: str
    log: str
    limit: float
    command: tuple[str, ...]
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: "good", "status 1", "late" or "left out: …"; its last line of JSON, else its last line."""

    step: str
    status: str
    seconds: float
    result: Json | None = None
    last_line: str = ""


def steps(part: int | None, weights: Path, data: Path | None, dry: bool) -> list[Step]:
    """The list in the order of value; `part` None: all of it, with one drawing of weights."""
    model = EMBEDDED if dry else FLAGSHIP
    small = ("--quick", "--repeats", "1", "--texts", "6") if dry else ()
    sizes = ("1",) if dry else ()
    draw_options = ("--layers", *sizes) if dry else ()
    sixteen = "float32,bfloat16" if dry else "float16"

    def benchmark(section: str, *options: str) -> tuple[str, ...]:
        return ("scripts/benchmark.py", "--only", section, "--model", model, *options, *small)

    drawn, adapted = ("--weights", str(weights / "merged")), ("--weights", str(weights / "adapted"))
    labelled = ("--data", str(data)) if data else ()
    drawing = ("scripts/random_checkpoint.py", "--model", model, *draw_options, "--to")
    draw = Step("draw", "setup.log", 110, (*drawing, drawn[1], "--merged"))
    draw_base = Step("draw base", "setup.log", 110, (*drawing, adapted[1]))
    rivals = ("--rival-batches", "2,4") if dry else ("--texts", "768", "--repeats", "3")
    latency = () if dry else ("--repeats", "20")
    many = () if dry else ("--texts", "384", "--repeats", "3")
    layers = ("--random-weights", "--layers", "1" if dry else "2")
    parts = {
        1: [
            draw,
            Step("tests", "tests.log", 120, ("-m", "pytest", "-q", "-p", "no:cacheprovider", *_cuda_tests(dry))),
            Step("ceilings", "speed.log", 80, benchmark("ceilings", *drawn), "draw"),
            Step("throughput", "speed.log", 230, benchmark("throughput", "--dtypes", sixteen, *drawn, *rivals), "draw"),
            Step("latency", "speed.log", 120, benchmark("latency", "--dtypes", sixteen, *drawn, *latency), "draw"),
        ],
        2: [
            draw,
            Step("levers", "levers.log", 220, benchmark("levers", *drawn, *many), "draw"),
            Step("equality", "equality.log", 260, benchmark("equality", *drawn), "draw"),
        ],
        3: [
            draw_base,
            Step("setup", "setup.log", 120, benchmark("setup", "--repeats", "1", *adapted), "draw base"),
            Step("loading", "setup.log", 330, benchmark("loading", "--repeats", "1", *adapted), "draw base"),
            Step("serve", "serve.log", 200, benchmark("serve", "--repeats", "1", *adapted), "draw base"),
            Step("profile", "levers.log", 150, benchmark("profile,elementwise", *adapted), "draw base"),
            Step("merge", "equality.log", 240, benchmark("equality", *layers, *labelled)),
        ],
    }
    if part is not None:
        return parts[part]
    return list({step.name: step for one in parts.values() for step in one}.values())


def _cuda_tests(dry: bool) -> list[str]:
    """The test files that ask whether there is CUDA; for a dry run one that is quick."""
    if dry:
        return ["tests/test_batches.py"]
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{path.name}" for path in files if "cuda.is_available" in path.read_text("utf-8")]


def run(chosen: Sequence[Step], to: Path, scratch: Path, seconds: float) -> list[Outcome]:
    """One after the other, until `seconds` are over; a line on standard output as each ends."""
    to.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds - MARGIN_SECONDS
    outcomes: list[Outcome] = []
    for step in chosen:
        left = deadline - time.monotonic()
        if any(one.step == step.needs and one.status != "good" for one in outcomes):
            outcomes.append(Outcome(step.name, "left out: no weights", 0))
        elif left < min(LEAST_SECONDS, step.limit):
            outcomes.append(Outcome(step.name, "left out: no time", 0))
        else:
            outcomes.append(_run(step, to / step.log, scratch, min(step.limit, left)))
        last = outcomes[-1]
        print(f"{last.step}: {last.status}, {last.seconds:.0f} s", flush=True)
    return outcomes


def _run(step: Step, log: Path, scratch: Path, limit: float) -> Outcome:
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    begins = log.stat().st_size if log.exists() else 0
    started = time.monotonic()
    with log.open("ab") as file:
        file.write(f"=== {step.name}: python {' '.join(step.command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            process_group=0,  # with the processes that it starts itself: a late one must not keep the GPU's memory
        )
        try:
            status = process.wait(limit)
            said = "good" if status == 0 else f"status {status}"
        except subprocess.TimeoutExpired:
            said = f"late: over {limit:.0f} s"
        finally:
            _end(process)
    lines = log.read_bytes()[begins:].decode("utf-8", "replace").splitlines()
    _shorten(log)
    result = next((found for line in reversed(lines) if (found := _json(line))), None)
    last_line = next((line for line in reversed(lines) if line.strip()), "")
    return Outcome(step.name, said, time.monotonic() - started, result, last_line)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Its whole group, as far as it still runs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _json(line: str) -> Json | None:
    if not line.startswith('{"benchmark"'):
        return None
    try:
        found: Json = json.loads(line)
    except ValueError:  # cut off
        return None
    return found


def _shorten(log: Path) -> None:
    """Keep the head and the tail of a log that has grown too large."""
    content = log.read_bytes()
    if len(content) > LOG_BYTES:
        head = LOG_BYTES // 15
        log.write_bytes(content[:head] + b"\n... cut ...\n" + content[head - LOG_BYTES :])


def report(outcomes: Sequence[Outcome]) -> str:
    """At most 60 lines: how each step ended, and its figures against the goals."""
    rows = [[one.step, one.status, f"{one.seconds:.0f}"] for one in outcomes]
    results = {one.step: one.result for one in outcomes if one.result}
    failed = [f"  {one.step}: {one.last_line[:150]}" for one in outcomes if one.seconds and one.status != "good"]
    figures = gpu_figures.lines(results)
    return "\n".join([table(["step", "ended", "s"], rows, text_columns=2), *failed, *figures][:60])


def main(argv: list[str]) -> int:
    """Exit status: 0 when every step was good, else 1."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step in progress is ended, too
    with tempfile.TemporaryDirectory(prefix="e5-gpu-", dir=arguments.scratch) as folder:
        scratch = Path(folder)
        free = shutil.disk_usage(scratch).free
        drawing = "" if arguments.dry_run else f"; drawing 14.5 GB: {DRAW_SECONDS[0]} to {DRAW_SECONDS[1]} s"
        print(f"{arguments.minutes} minutes; {free / 1e9:.0f} GB free in {scratch.parent}{drawing}", flush=True)
        chosen = steps(arguments.part, scratch / "weights", arguments.data, arguments.dry_run)
        if arguments.only:
            chosen = [step for step in chosen if step.name in arguments.only]
        outcomes = run(chosen, arguments.to, scratch, 60 * arguments.minutes)
    text = report(outcomes)
    (arguments.to / "summary.txt").write_text(text + "\n", "utf-8")
    print(text, flush=True)
    return int(any(one.status != "good" for one in outcomes))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the flagship on a GPU within a time limit.")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for the logs and summary.txt")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="a third of the steps (default: all)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="LIST", help="these steps of them")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help=f"in all (default: {MINUTES})")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="trecqa-dev.csv and stsb-en-dev.csv, for quality")
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="for 15 GB of weights, 45 without --part (default: the system's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the embedded model, with tiny sizes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
