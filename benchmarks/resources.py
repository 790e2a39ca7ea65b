"""The weights, engines and texts that the benchmark's sections share."""

import argparse
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

SEED = 0


class Resources:
    """Loads weights, engines and texts when they are first needed."""

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
                "layers": self.config["num_hidden_layers"],
                "dimensions": self.config["hidden_size"],
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

        return Counts.of(self.config)

    @cached_property
    def device_roofline(self) -> "Roofline":
        """Measured here unless the roofline section has set it."""
        from benchmarks import roofline

        return roofline.measure_device(self.device, self.dtype, self.quick)

    @cached_property
    def texts(self) -> "RandomTexts":
        """Texts for the engine that is already loaded, or else for a new one."""
        from benchmarks.texts import RandomTexts

        return RandomTexts(self.loaded_embedder() or self.load(), self.weights.tokenizer, SEED)

    @cached_property
    def config(self) -> Json:
        config: Json = json.loads((self.weights.checkpoint / "config.json").read_text("utf-8"))
        return config

    @property
    def dtype(self) -> "torch.dtype":
        from e5.network.device import choose_dtype

        return choose_dtype(None, self.device)

    @property
    def environment(self) -> dict[str, str]:
        """The E5_* variables with which a server loads the measured model."""
        environment = {"E5_MODEL": self.model.name, "E5_DEVICE": str(self.device)}
        environment["E5_DTYPE"] = self.texts.embedder.dtype
        return environment | ({} if self.weights_folder is None else {"E5_WEIGHTS": str(self.weights_folder)})

    def loaded_embedder(self) -> "Embedder | None":
        if "engines" in vars(self):
            return self.engines.default
        return self.texts.embedder if "texts" in vars(self) else None

    def load(self, dtype: str | None = None) -> "Embedder":
        """Load this package, without the compared libraries, on the weights as located."""
        from e5.embedder import Embedder

        settings = Settings(self.model.name, self.weights_folder, device=str(self.device), dtype=dtype)
        return Embedder.from_settings(settings)

    def _draw(self, layers: int | None) -> Path:
        from benchmarks import random_checkpoint

        log(f"drawing random weights for {self.model.name} …")
        return random_checkpoint.build(self.model, self.folder / "random", layers=layers, seed=SEED)
