"""The benchmark's sections, and the weights, engines and texts that they share."""

import argparse
import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Json, Keep, discard, log
from e5 import catalog
from e5.settings import Settings

if TYPE_CHECKING:  # these import torch, which must load after main() has set the environment
    import torch

    from benchmarks.counts import Counts
    from benchmarks.engines import Engines
    from benchmarks.roofline import Roofline
    from benchmarks.texts import RandomTexts
    from e5.embedder import Embedder

CALLS_PER_ROUND = 10
"""Calls of latency and serialization, whose calls are short, for each round of the other sections."""
SEED = 0
NO_COG = 'cog is not installed: pip install "cog>=0.22,<0.24"'
NO_RIVAL = "sentence-transformers is not installed: pip install -e '.[dev]'"

Section = tuple[Json, str]
"""A section's numbers and its card."""


class Suite:
    """One method per section. Weights and engines are loaded when a section first needs them."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        """`folder`: an empty one for random weights and merged checkpoints. Raises SettingsError, WeightsError."""
        from e5.network.device import choose_device
        from e5.weights.locate import locate

        self.folder = folder
        self.quick: bool = arguments.quick
        self.rounds: int = arguments.repeats
        self.count: int = arguments.texts
        self.dtypes: list[str] | None = arguments.dtypes
        self.rival_batches: list[int] | None = arguments.rival_batches
        self.data: Path | None = arguments.data
        self.random: bool = arguments.random_weights
        self.model = catalog.get(arguments.model)
        self.device = choose_device(Settings(device=arguments.device).device)
        self.weights_folder: Path | None = self._draw(arguments.layers) if self.random else arguments.weights
        self.weights = locate(self.model, self.weights_folder)
        self.keep: Keep = discard
        """Receives {section: its numbers so far}."""

    def facts(self) -> Json:
        """The model and the settings of this run."""
        return {
            "model": {
                "name": self.model.name,
                "source": self.weights.source,
                "random_weights": self.random,
                "layers": self._config["num_hidden_layers"],
                "dimensions": self._config["hidden_size"],
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

    def roofline(self) -> Section:
        from benchmarks import roofline

        result = roofline.measure(self.counts, self.device, self._dtype, self.quick)
        self.device_roofline = roofline.Roofline.of(result)
        return result, roofline.card(result)

    def setup(self) -> Section:
        from benchmarks import setup

        result = setup.measure(self.model.name, self.weights_folder, str(self.device), self.rounds)
        return result, setup.card(result)

    def loading(self) -> Section:
        from benchmarks import loading

        merged, keep = self.folder / "merged", self._keep_as("loading")
        result = loading.measure(self.model, self.weights, self.device, self.rounds, merged, keep)
        return result, loading.card(result)

    def serialization(self) -> Section:
        if not _installed("cog"):
            return _skipped("serialization", NO_COG)
        from benchmarks import serialization

        result = serialization.measure(CALLS_PER_ROUND * self.rounds)
        return result, serialization.card(result)

    def throughput(self) -> Section:
        if not _installed("sentence_transformers"):
            return _skipped("throughput", NO_RIVAL)
        from benchmarks import throughput

        batches = self.rival_batches or throughput.RIVAL_BATCHES[self.device.type]
        limit = self.counts.tokens_per_second(self.device_roofline.flop_per_second)
        keep = self._keep_as("throughput")
        result = throughput.measure(self.engines, self.texts, self.count, self.rounds, batches, limit, keep)
        return result, throughput.card(result)

    def latency(self) -> Section:
        if not _installed("sentence_transformers"):
            return _skipped("latency", NO_RIVAL)
        from benchmarks import latency

        count, bandwidth = CALLS_PER_ROUND * self.rounds, self.device_roofline.bytes_per_second
        keep = self._keep_as("latency")
        result = latency.measure(self.engines, self.texts, count, self.counts, bandwidth, keep)
        return result, latency.card(result)

    def ablations(self) -> Section:
        from benchmarks import ablations

        result = ablations.measure(self.texts, self._load, self.count, self.rounds, self._keep_as("ablations"))
        return result, ablations.card(result)

    def profile(self) -> Section:
        from benchmarks import profiling

        result = profiling.measure(self.texts)
        return result, profiling.card(result)

    def fused_ops(self) -> Section:
        if self.model.architecture != "mistral":
            return _skipped("fused_ops", "only Mistral models have them")
        from benchmarks import fused_ops

        result = fused_ops.measure(self._config, self.device, self._dtype, self.device_roofline.bytes_per_second)
        return result, fused_ops.card(result)

    def parity(self) -> Section:
        from benchmarks import parity

        scratch, keep = self.folder / "parity", self._keep_as("parity")
        subject = parity.ModelUnderTest(self.model, self.weights, self.checkpoint, self.device, scratch)
        result = parity.measure(subject, self.dtypes, self.data, self.quick, SEED, keep)
        return result, parity.card(result)

    def scaling(self) -> Section:
        from benchmarks import scaling

        sizes = scaling.QUICK_SIZES if self.quick else scaling.SIZES
        result = scaling.measure(self.texts.embedder, self.texts, sizes, self.rounds)
        return result, scaling.card(result)

    def serve(self) -> Section:
        if not _installed("cog", "aiohttp"):
            return _skipped("serve", NO_COG + "; pip install aiohttp")
        from benchmarks import serving

        keep = self._keep_as("serve")
        embedder, environment = self.texts.embedder, self._environment
        result = serving.measure(embedder, self.texts, environment, self.quick, self.rounds, keep)
        return result, serving.card(result)

    def gateway(self) -> Section:
        if not _installed("cog", "fastapi"):
            return _skipped("gateway", "it is not installed: pip install -e '.[cog,gateway]'")
        from benchmarks import gateway

        result = gateway.measure(self.model.name, self.texts, self._environment, self.quick, self.rounds)
        return result, gateway.card(result)

    def gpu_state(self) -> dict[str, bool]:
        """Whether the measured decoder uses its GPU features; {} without a GPU, decoder or loaded engine."""
        embedder = self._loaded_embedder()
        if embedder is None or self.device.type != "cuda" or self.model.architecture != "mistral":
            return {}
        from benchmarks import variants

        return {"fused kernels": variants.uses_kernels(embedder), "graphs": embedder.packed.graphs is not None}

    @cached_property
    def engines(self) -> "Engines":
        """This package and sentence-transformers in each dtype, on one checkpoint."""
        from benchmarks import engines

        dtypes = self.dtypes or engines.dtypes(self.device)
        log(f"loading both libraries in {' and '.join(dtypes)} …")
        ours = {dtype: engines.load_ours(self.model, self.checkpoint, self.device, dtype) for dtype in dtypes}
        return engines.Engines(ours, engines.load_rivals(self.checkpoint, self.device, dtypes))

    @cached_property
    def checkpoint(self) -> Path:
        """The complete checkpoint that all compared engines load."""
        from benchmarks import shared_checkpoint

        return shared_checkpoint.build(self.model, self.weights, self.device, self.folder / "shared")

    @cached_property
    def counts(self) -> "Counts":
        from benchmarks.counts import Counts

        return Counts.of(self._config)

    @cached_property
    def device_roofline(self) -> "Roofline":
        """Measured here unless the roofline section has set it."""
        from benchmarks import roofline

        return roofline.measure_device(self.device, self._dtype, self.quick)

    @cached_property
    def texts(self) -> "RandomTexts":
        """Texts for the engine that is already loaded, or else for a new one."""
        from benchmarks.texts import RandomTexts

        return RandomTexts(self._loaded_embedder() or self._load(), self.weights.tokenizer, SEED)

    @cached_property
    def _config(self) -> Json:
        config: Json = json.loads((self.weights.checkpoint / "config.json").read_text("utf-8"))
        return config

    @property
    def _dtype(self) -> "torch.dtype":
        from e5.network.device import choose_dtype

        return choose_dtype(None, self.device)

    @property
    def _environment(self) -> dict[str, str]:
        """The E5_* variables with which a server loads the measured model."""
        environment = {"E5_MODEL": self.model.name, "E5_DEVICE": str(self.device)}
        environment["E5_DTYPE"] = self.texts.embedder.dtype
        return environment | ({} if self.weights_folder is None else {"E5_WEIGHTS": str(self.weights_folder)})

    def _loaded_embedder(self) -> "Embedder | None":
        if "engines" in vars(self):
            return self.engines.default
        return self.texts.embedder if "texts" in vars(self) else None

    def _load(self, dtype: str | None = None) -> "Embedder":
        """Load this package, without the compared libraries, on the weights as located."""
        from e5.embedder import Embedder

        settings = Settings(self.model.name, self.weights_folder, device=str(self.device), dtype=dtype)
        return Embedder.from_settings(settings)

    def _draw(self, layers: int | None) -> Path:
        from benchmarks import random_checkpoint

        log(f"drawing random weights for {self.model.name} …")
        return random_checkpoint.build(self.model, self.folder / "random", layers=layers, seed=SEED)

    def _keep_as(self, section: str) -> Keep:
        return lambda numbers: self.keep({section: numbers})


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _skipped(name: str, reason: str) -> Section:
    return {"skipped": reason}, f"{name.capitalize().replace('_', ' ')}: skipped, {reason}"
