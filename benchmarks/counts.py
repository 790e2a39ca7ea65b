"""FLOPs and bytes of a model's linear layers, counted from config.json. Loads no weights and measures nothing.

Leaves out attention, norms and gates: at the benchmark's 150 tokens a text they are under 1 % of the flagship's FLOPs,
so time spent in them can be saved. Counts the decoder's last layer for every token, although this package computes most
of it only for each text's last token; that is 3 % of the flagship.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.report import Json


@dataclass(frozen=True)
class LinearLayer:
    """One weight matrix: [out_features, in_features]."""

    name: str
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    def flop(self, tokens: int) -> int:
        """One multiplication and one addition per weight and token."""
        return 2 * tokens * self.weights

    def bytes(self, tokens: int, weight_bytes: int, input_bytes: int = 2) -> int:
        """Minimum traffic: weights and inputs read once, 16-bit outputs written once."""
        return weight_bytes * self.weights + input_bytes * tokens * self.in_features + 2 * tokens * self.out_features


@dataclass(frozen=True)
class Counts:
    """The linear layers of one model."""

    layers: int
    linears: tuple[LinearLayer, ...]

    @property
    def weights(self) -> int:
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def flop_per_token(self) -> int:
        return 2 * self.weights

    def tokens_per_second(self, flop_per_second: float) -> float:
        """Upper bound on throughput when matrix multiplication is the only cost."""
        return flop_per_second / self.flop_per_token

    def read_milliseconds(self, bytes_per_second: float, weight_bytes: int = 2) -> float:
        """Lower bound on the latency of a forward pass: every weight is read once, however few the tokens."""
        return 1e3 * weight_bytes * self.weights / bytes_per_second

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Count a parsed config.json of Mistral (with this package's fused projections), BERT or XLM-R."""
        hidden_size, num_attention_heads = config["hidden_size"], config["num_attention_heads"]
        intermediate_size = config["intermediate_size"]
        head_dim = config.get("head_dim") or hidden_size // num_attention_heads
        num_key_value_heads = config.get("num_key_value_heads") or num_attention_heads
        gated = config["model_type"] == "mistral"
        linears = (
            LinearLayer("qkv", (num_attention_heads + 2 * num_key_value_heads) * head_dim, hidden_size),
            LinearLayer("out", hidden_size, num_attention_heads * head_dim),
            LinearLayer("gate+up" if gated else "up", (2 if gated else 1) * intermediate_size, hidden_size),
            LinearLayer("down", hidden_size, intermediate_size),
        )
        return cls(config["num_hidden_layers"], linears)

    def facts(self) -> Json:
        return {"linear_weights": self.weights, "flop_per_token": self.flop_per_token}
