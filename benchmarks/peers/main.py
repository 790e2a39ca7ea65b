"""Runs the sections of scripts/benchmark_peers.py and prints their cards and the JSON line.

The other packages need an older transformers than this one, so they have two environments of their own: one for the
engines, one for Infinity. `make benchmark-peers` makes them.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import e5
from benchmarks import shared_checkpoint
from benchmarks.counts import Counts
from benchmarks.peers import comparison, engines, matrix_rate, servers
from benchmarks.peers.engines import CHECKPOINT, EXPORTS, OURS, Engine
from benchmarks.report import Json, log, machine, machine_card, print_json
from benchmarks.texts import RandomTexts
from e5 import catalog
from e5.embedder import Embedder
from e5.errors import WeightsError
from e5.network.device import choose_dtype
from e5.settings import Settings
from e5.weights import checkpoint
from e5.weights.files import LocalWeights
from e5.weights.locate import locate
from e5_cog.repository import ROOT

MODEL, WEIGHTS = "multilingual-e5-small", ROOT / "weights" / "multilingual-e5-small-4bit"
PEERS, INFINITY = ROOT / ".venv-peers", ROOT / ".venv-infinity"
SECTIONS = ("engines", "servers")
CPU = torch.device("cpu")
DOCUMENTS, QUERIES, SERVER_TEXTS = 128, 60, 500
QUICK_DOCUMENTS, QUICK_QUERIES = 8, 4
QUERY_TOKENS, SERVER_WORDS = (9, 34), (20, 90)
"""Shortest and longest. Tokens include prompt and special tokens."""
ROUNDS, STARTS = 3, 3


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 1 if weights or an environment are missing."""
    arguments = _arguments(argv)
    try:
        if missing := [folder for folder in (PEERS, INFINITY) if not (folder / "bin" / "python").exists()]:
            raise WeightsError(f"{missing[0]} does not exist: run `make benchmark-peers`")
        with tempfile.TemporaryDirectory(prefix="e5-peers-") as folder:
            result = _measure(arguments, locate(catalog.get(MODEL), arguments.weights), Path(folder))
    except WeightsError as error:
        print(f"benchmark_peers.py: {error}", file=sys.stderr)
        return 1
    print_json(result)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark_peers.py", description="Compare with other packages and servers.")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, metavar="FOLDER", help=f"of {MODEL} (%(default)s)")
    parser.add_argument("--only", choices=SECTIONS, help="one section (default: both)")
    parser.add_argument("--engines", default="", metavar="TEXT", help="only the engines whose name contains the text")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="per section (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial run, not for figures")
    return parser.parse_args(argv)


def _measure(arguments: argparse.Namespace, weights: LocalWeights, folder: Path) -> Json:
    """Run the sections and print the card of each as soon as it is done."""
    result: Json = {"benchmark": "e5-cog peers", "version": e5.__version__, "machine": machine()}
    quick = "; quick: too small for figures" if arguments.quick else ""
    print(f"e5-cog {e5.__version__}: {MODEL} from {arguments.weights.name}{quick}", flush=True)
    print(machine_card(result["machine"]), flush=True)
    shared_checkpoint.build(catalog.get(MODEL), weights, CPU, folder / CHECKPOINT)
    embedder = Embedder.from_settings(Settings(MODEL, arguments.weights, device="cpu"))
    texts = RandomTexts(embedder, weights.tokenizer)
    if arguments.only != "servers":
        result["engines"] = _engines(arguments, texts, folder)
        counts = Counts.of(checkpoint.config(weights.checkpoint))
        result["matrix_rate"] = matrix_rate.measure(counts, result["engines"])
        print(f"\n{comparison.card(result['engines'])}\n{matrix_rate.card(result['matrix_rate'])}", flush=True)
    if arguments.only != "engines":
        words = np.random.default_rng(0).integers(SERVER_WORDS[0], SERVER_WORDS[1] + 1, SERVER_TEXTS).tolist()
        result["servers"] = servers.measure(
            MODEL, folder, texts.of_words(words), INFINITY / "bin" / "infinity_emb", arguments.quick, arguments.rounds
        )
        print(f"\n{servers.card(result['servers'])}", flush=True)
    print(flush=True)
    return result


def _engines(arguments: argparse.Namespace, texts: RandomTexts, folder: Path) -> Json:
    chosen = {engine: _python(engine) for engine in engines.ALL if arguments.engines in engine.label and _runs(engine)}
    if any(engine.folder in EXPORTS for engine in chosen):
        _export(folder)
    documents = texts.mixed(QUICK_DOCUMENTS if arguments.quick else DOCUMENTS)
    queries = texts.queries(QUICK_QUERIES if arguments.quick else QUERIES, *QUERY_TOKENS)
    tokens = texts.embedder.tokenize([], documents, "").total
    compared = comparison.Texts(documents, queries, tokens)
    starts = 1 if arguments.quick else STARTS
    return comparison.measure(chosen, MODEL, compared, folder, arguments.rounds, starts)


def _runs(engine: Engine) -> bool:
    """Whether the CPU multiplies in the engine's dtype: emulated, bfloat16 is slower than float32."""
    return engine.dtype != "bfloat16" or choose_dtype(None, CPU) == torch.bfloat16


def _python(engine: Engine) -> str:
    return sys.executable if engine.name == OURS else str(PEERS / "bin" / "python")


def _export(folder: Path) -> None:
    """Raises RuntimeError with the end of the log."""
    log("exporting the model for ONNX Runtime and OpenVINO …")
    command = [str(PEERS / "bin" / "python"), "-m", "benchmarks.peers.export", str(folder)]
    done = subprocess.run(command, env=comparison.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the export exited with status {done.returncode}; its log ends with:\n{done.stderr[-2000:]}"
        )
