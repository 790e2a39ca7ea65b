"""Runs the sections of scripts/benchmark_corpora.py and prints their cards and the JSON line."""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import e5
from benchmarks import shared_checkpoint
from benchmarks.corpora import comparison, long_run, overhead
from benchmarks.corpora.comparison import ALL, FEW, PROCESSES, Input
from benchmarks.report import Json, machine, machine_card, print_json, versions
from benchmarks.texts import RandomTexts
from e5 import catalog
from e5.embedder import Embedder
from e5.errors import WeightsError
from e5.settings import Settings
from e5.weights.files import LocalWeights
from e5.weights.locate import locate

SECTIONS = ("overhead", "programs", "long_run")
TEXTS, FILES, ROWS, ROUNDS = 1024, 8, 1_000_000, 3
QUICK_TEXTS, QUICK_ROWS = 16, 400
OVERHEAD_ROUNDS = 3
"""For each of the other rounds: the difference to be seen is small, and the rounds are short."""
FEW_TEXTS = 2 * PROCESSES
MAX_RELATIVE_L2 = 1e-4
PACKAGES = ("ray", "pyarrow")


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 1 if the weights are missing, a program fails, or the vectors differ."""
    arguments = _arguments(argv)
    try:
        weights = locate(catalog.get(arguments.model), arguments.weights)
        with tempfile.TemporaryDirectory(prefix="e5-corpora-", dir=arguments.scratch) as folder:
            result = _measure(arguments, weights, Path(folder))
    except (WeightsError, RuntimeError) as error:
        print(f"benchmark_corpora.py: {error}", file=sys.stderr)
        return 1
    print_json(result)
    if differing := [name for name, error in _differences(result) if not error <= MAX_RELATIVE_L2]:
        print(f"benchmark_corpora.py: vectors differ: {', '.join(differing)}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark_corpora.py", description="Measure scripts/corpus.py on the CPU.")
    parser.add_argument("--model", default=catalog.EMBEDDED, choices=catalog.names(), metavar="MODEL")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="the model's files (default: found or fetched)")
    parser.add_argument("--only", choices=SECTIONS, help="one section (default: all)")
    parser.add_argument("--texts", type=int, help=f"documents to compare on (default: {TEXTS})")
    parser.add_argument("--files", type=int, default=FILES, help="files with these documents (default: %(default)s)")
    parser.add_argument("--rows", type=int, help=f"rows of the long run (default: {ROWS})")
    parser.add_argument("--rounds", type=int, help=f"timed rounds (default: {ROUNDS}; 0: only the first run)")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="for inputs and outputs (default: temporary)")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial run, not for figures")
    arguments = parser.parse_args(argv)
    arguments.texts = arguments.texts or (QUICK_TEXTS if arguments.quick else TEXTS)
    arguments.rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    if arguments.rounds is None:
        arguments.rounds = 0 if arguments.quick else ROUNDS
    if arguments.texts < max(FEW_TEXTS, arguments.files):
        parser.error(f"--texts {arguments.texts}: pass {max(FEW_TEXTS, arguments.files)} or more")
    return arguments


def _measure(arguments: argparse.Namespace, weights: LocalWeights, folder: Path) -> Json:
    """Run the sections and print the card of each as soon as it is done."""
    model = catalog.get(arguments.model)
    result: Json = {"benchmark": "e5-cog corpora", "version": e5.__version__, "machine": machine()}
    result["machine"]["packages"] |= versions(PACKAGES)
    quick = "; quick: too small for figures" if arguments.quick else ""
    print(f"e5-cog {e5.__version__}: {model.name}, corpora on the CPU{quick}", flush=True)
    print(machine_card(result["machine"]), flush=True)
    checkpoint = shared_checkpoint.build(model, weights, torch.device("cpu"), folder / "checkpoint")
    settings = Settings(model.name, checkpoint, "merged", "cpu", "float32")
    embedder = Embedder.from_settings(settings)
    texts = RandomTexts(embedder, weights.tokenizer)
    documents = texts.mixed(arguments.texts)
    inputs = {
        ALL: _write(documents, arguments.files, folder / "documents"),
        FEW: _write(documents[:FEW_TEXTS], PROCESSES, folder / "few"),
    }
    for section in [arguments.only] if arguments.only else SECTIONS:
        scratch = folder / section
        scratch.mkdir()
        if section == "overhead":
            rounds = max(1, OVERHEAD_ROUNDS * arguments.rounds)
            result[section] = overhead.measure(settings, embedder, documents, inputs[ALL], scratch, rounds)
            card = overhead.card(result[section])
        elif section == "programs":
            result[section] = comparison.measure(model, checkpoint, inputs, scratch, arguments.rounds)
            card = comparison.card(result[section])
        else:
            result[section] = long_run.measure(model, checkpoint, texts, arguments.rows, scratch)
            card = long_run.card(result[section])
        print(f"\n{card}", flush=True)
    print(flush=True)
    return result


def _write(texts: Sequence[str], count: int, folder: Path) -> Input:
    """Write the texts to `count` files of JSONL, of about as many texts each."""
    folder.mkdir()
    ids = [f"document {index}" for index in range(len(texts))]
    edges = [len(texts) * index // count for index in range(count + 1)]
    files = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        path = folder / f"{number:03}.jsonl"
        rows = ({"id": ids[index], "text": texts[index]} for index in range(start, stop))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        files.append(str(path))
    return Input(files, ids)


def _differences(result: Json) -> Iterator[tuple[str, float]]:
    """Largest relative L2 of each section and program."""
    for section in ("overhead", "long_run"):
        if section in result:
            yield section, result[section]["max_relative_l2"]
    for row in result.get("programs", {}).get("programs", ()):
        yield row["program"], row["max_relative_l2"]
