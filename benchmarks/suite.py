"""How fast it is, here: a card for people, then one line of JSON with the same numbers.

    python scripts/benchmark.py                                       everything, on the embedded model
    python scripts/benchmark.py --quick --only throughput,latency
    python scripts/benchmark.py --model e5-small --random-weights     a real model's sizes without a download
    python scripts/benchmark.py --serve                               the server under load, and nothing else

Sections: the machine's ceilings; setup by phase; loading beside what the disk allows; the cost of an answer in Cog's
server; throughput and latency beside sentence-transformers (and the model card's loop) on the same weights; scaling;
serving; what the gateway adds. Only when they are named: what each part of the engine brings (levers), where its time
goes (profile, elementwise), and how equal its vectors are to float32 reference code (equality). What is compared takes
turns within one run, and the figures are medians or percentiles of it. Progress goes to standard error.
"""

import argparse
import importlib.util
import json
import logging
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import e5
from benchmarks.report import Json, Keep, discard, log, machine, machine_card
from e5 import catalog
from e5.errors import SettingsError, WeightsError
from e5.network import openmp
from e5.settings import DTYPES, Settings

if TYPE_CHECKING:  # torch loads in main(), once the environment is set
    from benchmarks.counts import Counts
    from benchmarks.engines import Engines
    from benchmarks.roofline import Ceilings
    from benchmarks.texts import Texts
    from e5.embedder import Embedder

SECTIONS = (
    "ceilings",
    "setup",
    "loading",
    "answer",
    "throughput",
    "latency",
    "levers",
    "profile",
    "elementwise",
    "equality",
    "scaling",
    "serve",
    "gateway",
)
"""In the order in which they run: setup and loading must not share a GPU's memory with engines already loaded."""
WHEN_NAMED = ("levers", "profile", "elementwise", "equality")
"""Sections about the engine's inside and its accuracy, which `--only` asks for."""
TEXTS, QUICK_TEXTS = 256, 24
ROUNDS, QUICK_ROUNDS = 5, 2
CALLS_PER_ROUND = 10
"""Latency and answer are short: they take this many calls for each round of the others."""
SEED = 0
NO_COG = 'cog is not installed: pip install "cog>=0.22,<0.24"'
NO_RIVAL = "sentence-transformers is not installed: pip install -e '.[dev]'"


def main(argv: list[str]) -> int:
    """Print the card and the JSON line. Exit status: 0; 1 the weights cannot be had; 2 wrong arguments."""
    arguments = _arguments(argv)
    openmp.spin_shortly()  # as predict.py does it, and for all engines alike
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="e5-benchmark-") as folder:
            result = _measure(arguments, Path(folder))
    except (SettingsError, WeightsError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    _print_json(result)
    return 0


def _print_json(result: Json) -> None:
    print(json.dumps(_rounded(result)), flush=True)


def _measure(arguments: argparse.Namespace, folder: Path) -> Json:
    """Run the sections, printing the card of each as soon as it is done."""
    result: Json = {"benchmark": "e5-cog", "version": e5.__version__, "machine": machine()}
    bench = Bench(arguments, folder)
    result |= bench.facts()
    model, settings = result["model"], result["settings"]
    weights = "random weights" if model["random_weights"] else f"source {model['source']}"
    print(
        f"{result['benchmark']} {result['version']}: {model['name']} ({weights}), {model['layers']} layers, "
        f"{model['dimensions']} dimensions, on {settings['device']}"
        + ("; quick: too small for figures" if settings["quick"] else "")
        + f"\n{machine_card(result['machine'])}",
        flush=True,
    )
    if arguments.partial:
        bench.keep = lambda section: _print_json(result | section)
    for name in arguments.only:
        result[name], card = getattr(bench, name)()
        print(f"\n{card}", flush=True)
        bench.keep({})
    if state := bench.gpu_state():
        result["gpu"] = state
        print("\nOn the GPU: " + ", ".join(f"{name} {'on' if on else 'OFF'}" for name, on in state.items()), flush=True)
    print(flush=True)
    return result


class Bench:
    """A method for each section, giving its numbers and its card; weights and engines are made when first needed."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        """`folder`: an empty one, for random weights and the merged checkpoint. Raises SettingsError, WeightsError."""
        from e5.network.device import choose_device
        from e5.weights.locate import locate

        self.folder = folder
        self.quick: bool = arguments.quick
        self.rounds: int = arguments.repeats or (QUICK_ROUNDS if self.quick else ROUNDS)
        self.count: int = arguments.texts or (QUICK_TEXTS if self.quick else TEXTS)
        self.dtypes: list[str] | None = arguments.dtypes
        self.rival_batches: list[int] | None = arguments.rival_batches
        self.data: Path | None = arguments.data
        self.random: bool = arguments.random_weights
        self.model = catalog.get(arguments.model)
        self.device = choose_device(Settings(device=arguments.device).device)
        self.weights = self._draw(arguments.layers) if self.random else arguments.weights
        self.found = locate(self.model, self.weights)
        self.keep: Keep = discard
        """Gets {section: its numbers so far}."""

    def facts(self) -> Json:
        """What is measured, on how much."""
        config = json.loads((self.found.checkpoint / "config.json").read_text("utf-8"))
        return {
            "model": {
                "name": self.model.name,
                "source": self.found.source,
                "random_weights": self.random,
                "layers": config["num_hidden_layers"],
                "dimensions": config["hidden_size"],
                "max_tokens": self.model.max_tokens,
            },
            "settings": {
                "device": str(self.device),
                "quick": self.quick,
                "texts": self.count,
                "rounds": self.rounds,
                "seed": SEED,
            },
        }

    def ceilings(self) -> tuple[Json, str]:
        from benchmarks import roofline
        from e5.network.device import choose_dtype

        result = roofline.measure(self.counts, self.device, choose_dtype(None, self.device), self.quick)
        self.device_ceilings = roofline.Ceilings.of(result)
        return result, roofline.card(result)

    def setup(self) -> tuple[Json, str]:
        from benchmarks import setup

        result = setup.measure(self.model.name, self.weights, str(self.device), self.rounds)
        return result, setup.card(result)

    def loading(self) -> tuple[Json, str]:
        from benchmarks import loading

        merged, keep = self.folder / "merged", self._keep_as("loading")
        result = loading.measure(self.model, self.found, self.device, self.rounds, merged, keep)
        return result, loading.card(result)

    def answer(self) -> tuple[Json, str]:
        if importlib.util.find_spec("cog") is None:
            return _skipped("answer", NO_COG)
        from benchmarks import serialization

        result = serialization.measure(CALLS_PER_ROUND * self.rounds)
        return result, serialization.card(result)

    def throughput(self) -> tuple[Json, str]:
        if importlib.util.find_spec("sentence_transformers") is None:
            return _skipped("throughput", NO_RIVAL)
        from benchmarks import throughput

        batches = self.rival_batches or throughput.RIVAL_BATCHES[self.device.type]
        limit = self.counts.tokens_per_second(self.device_ceilings.flop_per_second)
        keep = self._keep_as("throughput")
        result = throughput.measure(self.engines, self.texts, self.count, self.rounds, batches, limit, keep)
        return result, throughput.card(result)

    def latency(self) -> tuple[Json, str]:
        if importlib.util.find_spec("sentence_transformers") is None:
            return _skipped("latency", NO_RIVAL)
        from benchmarks import latency

        count, bandwidth = CALLS_PER_ROUND * self.rounds, self.device_ceilings.bytes_per_second
        keep = self._keep_as("latency")
        result = latency.measure(self.engines, self.texts, count, self.counts, bandwidth, keep)
        return result, latency.card(result)

    def levers(self) -> tuple[Json, str]:
        from benchmarks import ablations

        result = ablations.measure(self.texts, self._load, self.count, self.rounds, self._keep_as("levers"))
        return result, ablations.card(result)

    def profile(self) -> tuple[Json, str]:
        from benchmarks import profiling

        result = profiling.measure(self.texts)
        return result, profiling.card(result)

    def fused_ops(self) -> tuple[Json, str]:
        if self.model.architecture != "mistral":
            return _skipped("elementwise", "it is about Mistral models")
        from benchmarks import fused_ops
        from e5.network.device import choose_dtype

        config = json.loads((self.found.checkpoint / "config.json").read_text("utf-8"))
        dtype, bandwidth = choose_dtype(None, self.device), self.device_ceilings.bytes_per_second
        result = fused_ops.measure(config, self.device, dtype, bandwidth)
        return result, fused_ops.card(result)

    def equality(self) -> tuple[Json, str]:
        from benchmarks import parity

        place = parity.Place(self.model, self.found, self.checkpoint, self.device, self.folder / "equality")
        keep = self._keep_as("equality")
        result = parity.measure(place, self.dtypes, self.data, self.quick, SEED, keep)
        return result, parity.card(result)

    def scaling(self) -> tuple[Json, str]:
        from benchmarks import scaling

        sizes = scaling.QUICK_SIZES if self.quick else scaling.SIZES
        result = scaling.measure(self.texts.embedder, self.texts, sizes, self.rounds)
        return result, scaling.card(result)

    def serve(self) -> tuple[Json, str]:
        if importlib.util.find_spec("cog") is None or importlib.util.find_spec("aiohttp") is None:
            return _skipped("serve", NO_COG + "; pip install aiohttp")
        from benchmarks import serving

        keep = self._keep_as("serve")
        embedder, environment = self.texts.embedder, self._environment
        result = serving.measure(embedder, self.texts, environment, self.quick, self.rounds, keep)
        return result, serving.card(result)

    def gateway(self) -> tuple[Json, str]:
        if importlib.util.find_spec("cog") is None or importlib.util.find_spec("fastapi") is None:
            return _skipped("gateway", "it is not installed: pip install -e '.[cog,gateway]'")
        from benchmarks import gateway

        result = gateway.measure(self.model.name, self.texts, self._environment, self.quick, self.rounds)
        return result, gateway.card(result)

    def gpu_state(self) -> dict[str, bool]:
        """Whether the engine measured has what it should have on a GPU; {} elsewhere, or if none was loaded."""
        loaded = self.engines.default if "engines" in vars(self) else vars(self).get("texts") and self.texts.embedder
        if not loaded or self.device.type != "cuda" or self.model.architecture != "mistral":
            return {}
        from benchmarks import variants

        return {"fused kernels": variants.uses_kernels(loaded), "graphs": loaded.packed.graphs is not None}

    def _keep_as(self, section: str) -> Keep:
        return lambda numbers: self.keep({section: numbers})

    @property
    def _environment(self) -> dict[str, str]:
        """The E5_* variables that make a server run what is measured."""
        environment = {"E5_MODEL": self.model.name, "E5_DEVICE": str(self.device)}
        environment["E5_DTYPE"] = self.texts.embedder.dtype
        return environment | ({} if self.weights is None else {"E5_WEIGHTS": str(self.weights)})

    @cached_property
    def engines(self) -> "Engines":
        """This package and sentence-transformers in each dtype, on one checkpoint."""
        from benchmarks import engines as engines

        dtypes = self.dtypes or engines.dtypes(self.device)
        log(f"loading both libraries in {' and '.join(dtypes)} …")
        ours = engines.load_ours(self.model, self.checkpoint, self.device, dtypes)
        return engines.Engines(self.checkpoint, ours, engines.load_rivals(self.checkpoint, self.device, dtypes))

    @cached_property
    def checkpoint(self) -> Path:
        """The complete checkpoint that all engines of a comparison load."""
        from benchmarks import engines

        return engines.shared_checkpoint(self.model, self.found, self.device, self.folder / "shared")

    @cached_property
    def counts(self) -> "Counts":
        from benchmarks.counts import Counts

        return Counts.read(self.found.checkpoint)

    @cached_property
    def device_ceilings(self) -> "Ceilings":
        """Those that their section has measured (it sets them), else measured now."""
        from benchmarks import roofline
        from e5.network.device import choose_dtype

        return roofline.ceilings(self.device, choose_dtype(None, self.device), self.quick)

    def _load(self, dtype: str | None = None) -> "Embedder":
        """This package by itself, on the weights as they were found."""
        from e5.embedder import Embedder

        return Embedder.from_settings(Settings(self.model.name, self.weights, device=str(self.device), dtype=dtype))

    @cached_property
    def texts(self) -> "Texts":
        """Texts for the engine that is loaded already, else for one that is loaded now."""
        from benchmarks.texts import Texts

        embedder = self.engines.default if "engines" in vars(self) else self._load()
        return Texts(embedder, self.found.tokenizer, SEED)

    def _draw(self, layers: int | None) -> Path:
        from benchmarks import random_checkpoint

        log(f"drawing random weights for {self.model.name} …")
        return random_checkpoint.build(self.model, self.folder / "random", layers=layers, seed=SEED)


def _skipped(name: str, reason: str) -> tuple[Json, str]:
    return {"skipped": reason}, f"{name.capitalize()}: skipped, {reason}"


def _rounded(value: Any) -> Any:
    """Floats of six significant digits, which is more than any measurement here has."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, without the usage in front
        self.exit(2, f"{self.prog}: {message}\n")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="benchmark.py", description="Measure the package on this machine.")
    parser.add_argument("--model", default=catalog.EMBEDDED, choices=catalog.names(), metavar="MODEL")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="the model's files (default: found or fetched)")
    parser.add_argument("--random-weights", action="store_true", help="random weights of the model's real size instead")
    parser.add_argument("--layers", type=int, metavar="N", help="with --random-weights: N layers instead of all")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--dtypes", type=_dtypes, metavar="LIST", help="default: float32 and the device's own")
    parser.add_argument("--only", type=_sections, default=unnamed_sections(), metavar="LIST", help=",".join(SECTIONS))
    parser.add_argument("--serve", action="store_const", dest="only", const=["serve"], help="the same as --only serve")
    parser.add_argument("--partial", action="store_true", help="a line of JSON whenever there are new numbers")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs, not for figures")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"rounds of each measurement (default: {ROUNDS})"
    )
    parser.add_argument("--texts", type=_positive, metavar="N", help=f"documents of the throughput (default: {TEXTS})")
    parser.add_argument(
        "--rival-batches",
        type=_positives,
        metavar="LIST",
        help="batch sizes of sentence-transformers, of which the best counts (default: 32; on a GPU 32,128)",
    )
    parser.add_argument(
        "--data", type=_folder, metavar="FOLDER", help="for equality: trecqa-dev.csv and stsb-en-dev.csv"
    )
    arguments = parser.parse_args(argv)
    if arguments.random_weights and arguments.weights:
        parser.error("--random-weights and --weights exclude each other: pass one")
    if arguments.layers is not None and not arguments.random_weights:
        parser.error("--layers is for random weights: pass --random-weights as well")
    if arguments.dtypes == ["float8"]:
        parser.error("--dtypes float8 has nothing to be compared with: add another one, as in float16,float8")
    return arguments


def unnamed_sections() -> list[str]:
    """What runs when nothing is named."""
    return [name for name in SECTIONS if name not in WHEN_NAMED]


def _sections(text: str) -> list[str]:
    return [name for name in SECTIONS if name in _list(text, SECTIONS)]


def _dtypes(text: str) -> list[str]:
    return _list(text, DTYPES)


def _list(text: str, possible: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in possible]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(possible)}")
    return names


def _positives(text: str) -> list[int]:
    return [_positive(part.strip()) for part in text.split(",")]


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
