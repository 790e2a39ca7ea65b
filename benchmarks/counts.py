"""What a model's linear layers cost, counted from its config.json: nothing is loaded, nothing is measured.

Attention itself, norms and gates are left out on purpose. At the 150 tokens of the benchmark's texts they are under one
hundredth of the flagship's operations; whatever time they take is time that can be saved. The decoder's last layer is
counted for every token, though this package computes most of it for each text's last token alone: 3 % of the flagship.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.report import Json


@dataclass(frozen=True)
class Linear:
    """One matrix of a layer: [outputs, inputs]."""

    name: str
    outputs: int
    inputs: int

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs

    def flop(self, tokens: int) -> int:
        """A multiplication and an addition for each weight and token."""
        return 2 * tokens * self.weights

    def bytes(self, tokens: int, weight_bytes: int, row_bytes: int = 2) -> int:
        """The least that moves: weights and inputs read once, outputs of 16 bits written once."""
        return weight_bytes * self.weights + row_bytes * tokens * self.inputs + 2 * tokens * self.outputs


@dataclass(frozen=True)
class Counts:
    """The linear layers of one model."""

    layers: int
    linears: tuple[Linear, ...]

    @property
    def weights(self) -> int:
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def flop_per_token(self) -> int:
        return 2 * self.weights

    def tokens_per_second(self, flop_per_second: float) -> float:
        """No faster than the matrix units multiply."""
        return flop_per_second / self.flop_per_token

    def read_milliseconds(self, bytes_per_second: float, weight_bytes: int = 2) -> float:
        """However few tokens, every weight is read once."""
        return 1e3 * weight_bytes * self.weights / bytes_per_second

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of the checkpoint in `folder`."""
        return cls.of(json.loads((folder / "config.json").read_text("utf-8")))

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the content of a config.json: Mistral's fused as this package computes it, BERT's and XLM-R's."""
        width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        keys = config.get("num_key_value_heads") or heads
        gated = config["model_type"] == "mistral"
        linears = (
            Linear("qkv", (heads + 2 * keys) * head, width),
            Linear("out", width, heads * head),
            Linear("gate+up" if gated else "up", (2 if gated else 1) * inner, width),
            Linear("down", width, inner),
        )
        return cls(config["num_hidden_layers"], linears)

    def facts(self) -> Json:
        return {"linear_weights": self.weights, "flop_per_token": self.flop_per_token}
