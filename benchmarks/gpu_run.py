"""Everything that is to be known about the flagship on a GPU, in one command with a time limit; or in three.

    python scripts/measure_gpu.py --to out --part 1     ceilings, throughput, latency; and the tests that need CUDA
    python scripts/measure_gpu.py --to out --part 2     what each part of the engine brings; equality at full size
    python scripts/measure_gpu.py --to out --part 3     serving, a profile, setup, the merge, quality by dtype, loading
    python scripts/measure_gpu.py --to out --dry-run    all of it on the embedded model, tiny, to see that it runs

Each step is a process of its own with its own time limit. A step that fails or is late does not stop the next one, and
keeps the figures that it had until then. A step whose packages are not installed is left out. Standard output has a
step's figures, beside their goals, as soon as it ends; `summary.txt` in the folder always has all of them so far, and
the logs have what the steps print. With `--weights` the random weights are kept, and used again by the next command.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gpu_figures
from benchmarks.report import Json, table
from e5_cog.repository import ROOT
from e5_cog.server import python_path

FLAGSHIP, EMBEDDED = "e5-mistral-7b-instruct", "e5-mistral-tiny"
MINUTES = 9.5
MARGIN_SECONDS, LEAST_SECONDS = 8, 20
"""Kept for the table at the end; and what is too little to begin a step with."""
LOG_BYTES = 15 << 20
DRAW_SECONDS = (20, 90)
"""Estimate for 14.5 GB in 16 bits: drawing them takes a second; the disk's rate, .2 to 1 GB/s, makes the difference."""
CLOCKS = ("nvidia-smi", "--query-gpu=timestamp,clocks.sm,power.draw,temperature.gpu", "--format=csv", "-l", "2")
RIVAL = "sentence_transformers"


@dataclass(frozen=True)
class Step:
    """One process: its arguments for Python, the file that it logs to, how many seconds it may take, the step whose
    result it needs, and the packages that it imports."""

    name: str
    log: str
    limit: float
    command: tuple[str, ...]
    needs: str = ""
    packages: tuple[str, ...] = ()


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
        return ("scripts/benchmark.py", "--partial", "--only", section, "--model", model, *options, *small)

    drawn, adapted = ("--weights", str(weights / "merged")), ("--weights", str(weights / "adapted"))
    labelled = ("--data", str(data)) if data else ()
    drawing = ("scripts/random_checkpoint.py", "--model", model, *draw_options, "--to")
    draw = Step("draw", "setup.log", 110, (*drawing, drawn[1], "--merged"))
    draw_base = Step("draw base", "setup.log", 110, (*drawing, adapted[1]))
    rivals = ("--rival-batches", "2,4") if dry else ("--texts", "768", "--repeats", "3")
    latency = () if dry else ("--repeats", "20")
    many = () if dry else ("--texts", "384", "--repeats", "3")
    layers = ("--random-weights", "--layers", "1" if dry else "2")
    throughput = benchmark("throughput", "--dtypes", sixteen, *drawn, *rivals)
    parts = {
        1: [
            draw,
            Step("tests", "tests.log", 120, ("-m", "pytest", *_cuda_tests()), "", ("pytest", "pytest_timeout")),
            Step("ceilings", "speed.log", 80, benchmark("ceilings", *drawn), "draw"),
            Step("throughput", "speed.log", 230, throughput, "draw", (RIVAL,)),
            Step(
                "latency",
                "speed.log",
                120,
                benchmark("latency", "--dtypes", sixteen, *drawn, *latency),
                "draw",
                (RIVAL,),
            ),
        ],
        2: [
            draw,
            Step("levers", "levers.log", 240, benchmark("levers", *drawn, *many), "draw"),
            Step("equality", "equality.log", 280, benchmark("equality", *drawn), "draw", (RIVAL,)),
        ],
        3: [
            draw_base,
            Step(
                "serve",
                "serve.log",
                180,
                benchmark("serve", "--repeats", "1", *adapted),
                "draw base",
                ("cog", "aiohttp"),
            ),
            Step("profile", "levers.log", 130, benchmark("profile,elementwise", *adapted), "draw base"),
            Step("setup", "setup.log", 90, benchmark("setup", "--repeats", "1", *adapted), "draw base"),
            Step("merge", "equality.log", 130, benchmark("equality", *layers, *labelled), "", (RIVAL, "peft")),
            Step("loading", "setup.log", 330, benchmark("loading", "--repeats", "1", *adapted), "draw base"),
        ],
    }
    if part is not None:
        return parts[part]
    return list({step.name: step for one in parts.values() for step in one}.values())


def _cuda_tests() -> list[str]:
    """Options for pytest: the tests that need CUDA or Triton. Only their files are collected: others need packages that
    a bare GPU machine lacks."""
    texts = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").glob("test_*.py"))}
    marked = [f"tests/{path.name}" for path, text in texts.items() if "mark.gpu" in text or "mark.kernels" in text]
    return ["-v", "-p", "no:cacheprovider", "-m", "gpu or kernels", *marked]


def run(chosen: Sequence[Step], to: Path, scratch: Path, seconds: float) -> Iterator[Outcome]:
    """One after the other, until `seconds` are over."""
    to.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds - MARGIN_SECONDS
    failed: set[str] = set()
    for step in chosen:
        left = deadline - time.monotonic()
        missing = [package for package in step.packages if importlib.util.find_spec(package) is None]
        if step.needs in failed:
            outcome = Outcome(step.name, "left out: no weights", 0)
        elif missing:
            outcome = Outcome(step.name, f"left out: {missing[0]} is not installed", 0)
        elif left < min(LEAST_SECONDS, step.limit):
            outcome = Outcome(step.name, "left out: no time", 0)
        else:
            outcome = _run(step, to / step.log, scratch, min(step.limit, left))
        if outcome.status != "good":
            failed.add(step.name)
        yield outcome


def _run(step: Step, log: Path, scratch: Path, limit: float) -> Outcome:
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = python_path()
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


@contextmanager
def _clocks(to: Path) -> Iterator[None]:
    """Log the GPU's clock, power and temperature every other second: a share of the peak means little without them."""
    if shutil.which(CLOCKS[0]) is None:
        yield
        return
    to.mkdir(parents=True, exist_ok=True)
    with (to / "clocks.log").open("ab") as file:
        process = subprocess.Popen(CLOCKS, stdout=file, stderr=subprocess.STDOUT, process_group=0)
        try:
            yield
        finally:
            _end(process)


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


def lines(outcome: Outcome) -> list[str]:
    """How a step ended, and its figures beside their goals; without figures, the last line that it printed."""
    figures = gpu_figures.lines({outcome.step: outcome.result}) if outcome.result else []
    tell = bool(outcome.seconds) and (outcome.status != "good" or not outcome.result)
    last_line = [f"  {outcome.step}: {outcome.last_line[:150]}"] if tell else []
    return [f"{outcome.step}: {outcome.status}, {outcome.seconds:.0f} s", *last_line, *figures]


def report(outcomes: Sequence[Outcome]) -> str:
    """How each step ended, as a table, and all figures."""
    rows = [[one.step, one.status, f"{one.seconds:.0f}"] for one in outcomes]
    machines = dict.fromkeys(gpu_figures.machine(one.result) for one in outcomes if one.result)
    details = [line for one in outcomes for line in lines(one)[1:]]
    return "\n".join([*machines, table(["step", "ended", "s"], rows, text_columns=2), *details])


def main(argv: list[str]) -> int:
    """Exit status: 0 when every step was good, else 1."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step in progress is ended, too
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="e5-gpu-", dir=arguments.scratch) as folder, _clocks(arguments.to):
        scratch = Path(folder)
        free = shutil.disk_usage(scratch).free
        drawing = "" if arguments.dry_run else f"; drawing 14.5 GB: {DRAW_SECONDS[0]} to {DRAW_SECONDS[1]} s"
        print(f"{arguments.minutes} minutes; {free / 1e9:.0f} GB free in {scratch.parent}{drawing}", flush=True)
        weights = arguments.weights or scratch / "weights"
        chosen = steps(
            arguments.part, weights.resolve(), arguments.data and arguments.data.resolve(), arguments.dry_run
        )
        if arguments.only:
            chosen = [step for step in chosen if step.name in arguments.only]
        for outcome in run(chosen, arguments.to, scratch, 60 * arguments.minutes):
            outcomes.append(outcome)
            print("\n".join(lines(outcome)), flush=True)
            (arguments.to / "summary.txt").write_text(report(outcomes) + "\n", "utf-8")
    print("\n".join(report(outcomes).splitlines()[: 2 + len(outcomes)]), flush=True)
    return int(any(one.status != "good" for one in outcomes))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the flagship on a GPU within a time limit.")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for the logs and summary.txt")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="a third of the steps (default: all)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="LIST", help="these steps of them")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help=f"in all (default: {MINUTES})")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="trecqa-dev.csv and stsb-en-dev.csv, for quality")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="keep the random weights here for the next run: 15 to 30 GB"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="for temporary files, 15 to 45 GB (default: the system's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the embedded model, with tiny sizes")
    return parser.parse_args(argv)
