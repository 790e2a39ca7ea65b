"""Runs the steps of scripts/measure_gpu.py as processes with time limits, and reports their figures against goals."""

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
from benchmarks.gpu_steps import Step, steps
from benchmarks.report import Json, table
from e5_cog.repository import ROOT
from e5_cog.server import python_path

MINUTES = 9.5
MARGIN_SECONDS, MIN_SECONDS = 8, 20
"""Reserved for the final table; and the least time that a step is started with."""
MAX_LOG_BYTES = 15 << 20
DRAW_SECONDS = (20, 90)
"""Estimate for 14.5 GB in 16 bits: drawing them takes a second; the disk's rate, .2 to 1 GB/s, makes the difference."""
CLOCKS = ("nvidia-smi", "--query-gpu=timestamp,clocks.sm,power.draw,temperature.gpu", "--format=csv", "-l", "2")


@dataclass(frozen=True)
class StepResult:
    """A finished step. `status`: "good", "status 1", "late: …" or "left out: …"; `result`: its last line of JSON."""

    step: str
    status: str
    seconds: float
    result: Json | None = None
    last_line: str = ""


def run(chosen: Sequence[Step], to: Path, scratch: Path, seconds: float) -> Iterator[StepResult]:
    """Run the steps one by one until `seconds` are over; leave out those that cannot run."""
    to.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds - MARGIN_SECONDS
    failed: set[str] = set()
    for step in chosen:
        left = deadline - time.monotonic()
        missing = [package for package in step.packages if importlib.util.find_spec(package) is None]
        if step.needs in failed:
            result = StepResult(step.name, "left out: no weights", 0)
        elif missing:
            result = StepResult(step.name, f"left out: {missing[0]} is not installed", 0)
        elif left < min(MIN_SECONDS, step.limit):
            result = StepResult(step.name, "left out: no time", 0)
        else:
            result = _run(step, to / step.log, scratch, min(step.limit, left))
        if result.status != "good":
            failed.add(step.name)
        yield result


def _run(step: Step, log: Path, scratch: Path, limit: float) -> StepResult:
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = python_path()
    offset = log.stat().st_size if log.exists() else 0
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
            process_group=0,  # so that _kill also ends the step's own children, which would keep GPU memory
        )
        try:
            exit_status = process.wait(limit)
            status = "good" if exit_status == 0 else f"status {exit_status}"
        except subprocess.TimeoutExpired:
            status = f"late: over {limit:.0f} s"
        finally:
            _kill(process)
    lines = log.read_bytes()[offset:].decode("utf-8", "replace").splitlines()
    _shorten(log)
    results = (_parse_result(line) for line in reversed(lines))
    last_result = next((result for result in results if result), None)
    last_line = next((line for line in reversed(lines) if line.strip()), "")
    return StepResult(step.name, status, time.monotonic() - started, last_result, last_line)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the rest of the process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _log_clocks(to: Path) -> Iterator[None]:
    """Log the GPU's clock, power and temperature every two seconds: a share of the peak means little without them."""
    if shutil.which(CLOCKS[0]) is None:
        yield
        return
    to.mkdir(parents=True, exist_ok=True)
    with (to / "clocks.log").open("ab") as file:
        process = subprocess.Popen(CLOCKS, stdout=file, stderr=subprocess.STDOUT, process_group=0)
        try:
            yield
        finally:
            _kill(process)


def _parse_result(line: str) -> Json | None:
    if not line.startswith('{"benchmark"'):
        return None
    try:
        result: Json = json.loads(line)
    except ValueError:  # the line is cut off
        return None
    return result


def _shorten(log: Path) -> None:
    """Cut out the middle of a log that has grown too large."""
    content = log.read_bytes()
    if len(content) > MAX_LOG_BYTES:
        head = MAX_LOG_BYTES // 15
        log.write_bytes(content[:head] + b"\n... cut ...\n" + content[head - MAX_LOG_BYTES :])


def report_lines(result: StepResult) -> list[str]:
    """The step's status and its figures against their goals; the last printed line if it failed or has no figures."""
    figures = gpu_figures.figure_lines({result.step: result.result}) if result.result else []
    show_last_line = bool(result.seconds) and (result.status != "good" or not result.result)
    last_line = [f"  {result.step}: {result.last_line[:150]}"] if show_last_line else []
    return [f"{result.step}: {result.status}, {result.seconds:.0f} s", *last_line, *figures]


def summary(results: Sequence[StepResult]) -> str:
    """A table of the steps, and all figures."""
    rows = [[result.step, result.status, f"{result.seconds:.0f}"] for result in results]
    machines = dict.fromkeys(gpu_figures.machine_line(result.result) for result in results if result.result)
    figures = [line for result in results for line in report_lines(result)[1:]]
    return "\n".join([*machines, table(["step", "ended", "s"], rows, text_columns=2), *figures])


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 if every step was good, else 1."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the `finally` that kills the current step
    results: list[StepResult] = []
    with tempfile.TemporaryDirectory(prefix="e5-gpu-", dir=arguments.scratch) as folder, _log_clocks(arguments.to):
        scratch = Path(folder)
        free = shutil.disk_usage(scratch).free
        drawing = "" if arguments.dry_run else f"; drawing 14.5 GB: {DRAW_SECONDS[0]} to {DRAW_SECONDS[1]} s"
        print(f"{arguments.minutes} minutes; {free / 1e9:.0f} GB free in {scratch.parent}{drawing}", flush=True)
        weights = (arguments.weights or scratch / "weights").resolve()
        chosen = steps(arguments.part, weights, arguments.data and arguments.data.resolve(), arguments.dry_run)
        if arguments.only:
            chosen = [step for step in chosen if step.name in arguments.only]
        for result in run(chosen, arguments.to, scratch, 60 * arguments.minutes):
            results.append(result)
            print("\n".join(report_lines(result)), flush=True)
            (arguments.to / "summary.txt").write_text(summary(results) + "\n", "utf-8")
    print("\n".join(summary(results).splitlines()[: 2 + len(results)]), flush=True)
    return int(any(result.status != "good" for result in results))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="measure_gpu.py", description="Measure the flagship on a GPU within a time limit."
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for the logs and summary.txt")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="one of three groups of steps (default: all)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="LIST", help="only these steps")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help=f"time limit (default: {MINUTES})")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="trecqa-dev.csv and stsb-en-dev.csv, for quality")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="keep the random weights here for the next run: 15 to 30 GB"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="for temporary files, 15 to 45 GB (default: the system's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the embedded model, with tiny sizes")
    return parser.parse_args(argv)
