"""BERT and XLM-R, the family's encoders: the token ids of N texts → pooled vectors.

The arithmetic is that of transformers' BertModel and XLMRobertaModel, which are the same but for the positions; the
tests compare the two. Query, key and value are one matrix: a layer is four matrix products.

This module does not import transformers, which would add 2.5 s to every start. `e5.network.stock_model` runs what it
does not compute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding

from e5.catalog import Pooling
from e5.network import fused_ops, linear
from e5.network.attention import packed_attention
from e5.network.batches import PackedBatch
from e5.network.fused_ops import FusedOps
from e5.network.linear import Destination, Linear
from e5.network.pooling import POOLINGS
from e5.weights import checkpoint, reading


@dataclass(frozen=True)
class Config:
    """An encoder's config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read config.json; defaults are those of transformers' BertConfig, which XLMRobertaConfig shares but for two.

        Raises WeightsError for an unreadable file.
        """
        config, path = checkpoint.config(folder), folder / "config.json"
        try:
            read = cls(
                model_type=str(config["model_type"]),
                vocab_size=int(config.get("vocab_size", 30522)),
                hidden_size=int(config.get("hidden_size", 768)),
                intermediate_size=int(config.get("intermediate_size", 3072)),
                num_hidden_layers=int(config.get("num_hidden_layers", 12)),
                num_attention_heads=int(config.get("num_attention_heads", 12)),
                max_position_embeddings=int(config.get("max_position_embeddings", 512)),
                type_vocab_size=int(config.get("type_vocab_size", 2)),
                layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
                pad_token_id=int(config.get("pad_token_id", 1 if config["model_type"] == "xlm-roberta" else 0)),
            )
            if read.hidden_size % read.num_attention_heads:
                raise ValueError("hidden_size is no multiple of num_attention_heads")
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise reading.unreadable(path, error) from error
        return read


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The setting of a config.json that this encoder does not compute, None if it computes them all."""
    for name, computed in (
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("quantization_config", None),
    ):
        if (value := config.get(name, computed)) != computed:
            return f"{name}={value!r}"
    return None


class Norm(NamedTuple):
    """The weights of a layer norm, both [D]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Layer:
    """One layer's weights, with D = hidden_size, F = intermediate_size."""

    query_key_value: Linear  # [3D, D]
    attention_output: Linear  # [D, D]
    attention_norm: Norm
    intermediate: Linear  # [F, D]
    output: Linear  # [D, F]
    output_norm: Norm


class Encoder:
    """One encoder's weights, uninitialized until `destinations()` are filled, its forward pass and its pooling."""

    capturable = True

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, pooling: Pooling) -> None:
        self.config, self.device, self.dtype, self.pool = config, device, dtype, POOLINGS[pooling]
        self.dimensions = config.hidden_size
        self.padding_idx, self.max_positions = padding_idx(config), max_positions(config)
        self.ops = fused_ops.for_device(device)
        self._scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        hidden, intermediate = config.hidden_size, config.intermediate_size

        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, device=device, dtype=dtype)

        def norm() -> Norm:
            return Norm(empty(hidden), empty(hidden))

        def matrix(out_features: int, in_features: int) -> Linear:
            return linear.empty(out_features, in_features, device, dtype, bias=True)

        self.word_embeddings = empty(config.vocab_size, hidden)
        self.position_embeddings = empty(config.max_position_embeddings, hidden)
        self.token_type_embeddings = empty(config.type_vocab_size, hidden)
        self.norm = norm()
        self.layers = [
            Layer(
                query_key_value=matrix(3 * hidden, hidden),
                attention_output=matrix(hidden, hidden),
                attention_norm=norm(),
                intermediate=matrix(intermediate, hidden),
                output=matrix(hidden, intermediate),
                output_norm=norm(),
            )
            for _ in range(config.num_hidden_layers)
        ]

    def destinations(self) -> dict[str, Destination]:
        """Where each tensor of a checkpoint goes, by its name in transformers' BertModel."""
        hidden = self.config.hidden_size
        destinations: dict[str, Destination] = {
            "embeddings.word_embeddings.weight": self.word_embeddings,
            "embeddings.position_embeddings.weight": self.position_embeddings,
            "embeddings.token_type_embeddings.weight": self.token_type_embeddings,
            "embeddings.LayerNorm.weight": self.norm.weight,
            "embeddings.LayerNorm.bias": self.norm.bias,
        }
        for index, layer in enumerate(self.layers):
            for third, name in enumerate(("query", "key", "value")):
                start = third * hidden
                weight, bias = layer.query_key_value.destinations(start, start + hidden)
                destinations[f"encoder.layer.{index}.attention.self.{name}.weight"] = weight
                destinations[f"encoder.layer.{index}.attention.self.{name}.bias"] = bias
            parts: dict[str, Linear | Norm] = {
                "attention.output.dense": layer.attention_output,
                "attention.output.LayerNorm": layer.attention_norm,
                "intermediate.dense": layer.intermediate,
                "output.dense": layer.output,
                "output.LayerNorm": layer.output_norm,
            }
            for name, part in parts.items():
                assert part.bias is not None
                destinations[f"encoder.layer.{index}.{name}.weight"] = part.weight
                destinations[f"encoder.layer.{index}.{name}.bias"] = part.bias
        return destinations

    def prepack(self) -> bool:
        """As in `e5.network.model.Network`."""
        return linear.prepack(self.layers)

    def embed(self, batch: PackedBatch) -> Tensor:
        """T tokens of N texts → pooled vectors float32 [N, D]."""
        eps, heads = self.config.layer_norm_eps, self.config.num_attention_heads
        # In transformers' order, so that 16-bit sums are rounded alike. All tokens have type 0.
        hidden = embedding(batch.input_ids, self.word_embeddings).add_(self.token_type_embeddings[0])
        positions = embedding(batch.position_ids, self.position_embeddings)
        hidden = self.ops.add_layer_norm(hidden, positions, *self.norm, eps)  # [T, D]
        for layer in self.layers:
            qkv = layer.query_key_value.linear(hidden).view(len(hidden), 3, heads, -1)  # [T, 3, H, d]
            query, key, value = qkv.unbind(1)
            attended = packed_attention(query, key, value, batch, causal=False, scale=self._scale)  # [T, H, d]
            attended = attended.flatten(1)  # [T, D]
            hidden = self.ops.dense_add_norm(layer.attention_output, attended, hidden, *layer.attention_norm, eps)
            intermediate = layer.intermediate.linear_gelu(hidden)  # [T, F]
            hidden = self.ops.dense_add_norm(layer.output, intermediate, hidden, *layer.output_norm, eps)
        return self.pool(hidden, batch.cu_seqlens)

    def compile_kernels(self) -> None:
        """Compile the kernels that the layers call; if that fails, use torch's operators."""
        self.ops = fused_ops.compiled(self.ops, self._call_each)

    def _call_each(self, ops: FusedOps) -> None:
        rows = torch.zeros(2, self.dimensions, device=self.device, dtype=self.dtype)
        ops.add_layer_norm(rows, rows, *self.norm, self.config.layer_norm_eps)


def padding_idx(config: Any) -> int | None:
    """XLM-R's padding token, whose positions begin at padding_idx + 1; None for models whose positions begin at 0."""
    return int(config.pad_token_id) if config.model_type == "xlm-roberta" else None


def max_positions(config: Any) -> int:
    """The longest text, in tokens including special ones, that the checkpoint has positions for."""
    padding = padding_idx(config)
    return int(config.max_position_embeddings) - (0 if padding is None else padding + 1)
