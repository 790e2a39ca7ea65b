"""Mistral's decoder: the token ids of N texts → the hidden state of each text's last token.

The arithmetic is that of transformers' MistralModel; the tests compare the two. There are two differences in layout.
Query, key and value are one matrix, and so are gate and up: a layer is four matrix products and five fused operations.
The last layer computes only the last token of each text, the one that pooling reads, and keys and values for all
tokens. That saves 86 % of the layer's multiplications: 29 % of the total for the embedded model's three layers, 3 %
for the flagship's 32.

This module does not import transformers, which would add 2.5 s to every start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from e5.network import fused_ops, linear
from e5.network.attention import last_token_attention, packed_attention
from e5.network.batches import PackedBatch, bucket_size
from e5.network.fused_ops import FusedOps
from e5.network.linear import Activations, Destination, Linear
from e5.weights import checkpoint, reading


@dataclass(frozen=True)
class Config:
    """A Mistral decoder's config.json. `sliding_window`: how many tokens a token sees, itself included."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    sliding_window: int | None
    rope_theta: float
    rms_norm_eps: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read config.json as transformers 4 or 5 writes it; defaults are those of transformers' MistralConfig.

        Raises WeightsError for an unreadable file.
        """
        config, path = checkpoint.config(folder), folder / "config.json"
        rope = _rope(config)
        try:
            hidden_size, heads = int(config.get("hidden_size", 4096)), int(config.get("num_attention_heads", 32))
            sliding_window = config.get("sliding_window", 4096)
            return cls(
                vocab_size=int(config.get("vocab_size", 32000)),
                hidden_size=hidden_size,
                intermediate_size=int(config.get("intermediate_size", 14336)),
                num_hidden_layers=int(config.get("num_hidden_layers", 32)),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads", 8)),
                head_dim=int(config.get("head_dim") or hidden_size // heads),
                max_position_embeddings=int(config.get("max_position_embeddings", 131072)),
                sliding_window=None if sliding_window is None else int(sliding_window),
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            )
        except (TypeError, ValueError) as error:
            raise reading.unreadable(path, error) from error


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The setting of a config.json that this decoder does not compute, None if it computes them all."""
    rope = _rope(config)
    for name, value, computed in (
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
    ):
        if value != computed:
            return f"{name}={value!r}"
    return None


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of rotary positions, by the names of transformers 5 or 4."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's weights, with D = hidden_size, H query heads and K key heads of size d, F = intermediate_size."""

    input_layernorm: Tensor  # [D]
    o_proj: Linear  # [D, H · d]
    post_attention_layernorm: Tensor  # [D]
    gate_up_proj: Linear  # [2F, D]
    down_proj: Linear  # [D, F]


@dataclass(frozen=True, kw_only=True)
class InnerLayer(Layer):
    """Every layer but the last."""

    qkv_proj: Linear  # [(H + 2K) · d, D]


@dataclass(frozen=True, kw_only=True)
class LastLayer(Layer):
    """The last layer: queries are computed for fewer tokens than keys and values, so the two have a matrix each."""

    q_proj: Linear  # [H · d, D]
    kv_proj: Linear  # [2K · d, D]


class Decoder:
    """One model's weights, uninitialized until `destinations()` are filled, and its forward pass."""

    capturable = True

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, float8: bool = False) -> None:
        """`dtype`: of activations, embedding and norms; also of the linear layers unless they are float8."""
        self.config, self.device, self.dtype = config, device, dtype
        self.dimensions, self.max_positions = config.hidden_size, config.max_position_embeddings
        self.padding_idx: int | None = None
        self.ops = fused_ops.for_device(device)
        self._scale = config.head_dim**-0.5
        self._query_size = config.num_attention_heads * config.head_dim
        self._key_size = config.num_key_value_heads * config.head_dim

        def norm() -> Tensor:
            return torch.empty(config.hidden_size, device=device, dtype=dtype)

        def matrix(out_features: int, in_features: int) -> Linear:
            return linear.empty(out_features, in_features, device, dtype, float8=float8)

        self.embed_tokens = torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype)

        def shared() -> dict[str, Any]:
            return {
                "input_layernorm": norm(),
                "o_proj": matrix(config.hidden_size, self._query_size),
                "post_attention_layernorm": norm(),
                "gate_up_proj": matrix(2 * config.intermediate_size, config.hidden_size),
                "down_proj": matrix(config.hidden_size, config.intermediate_size),
            }

        self.layers = [
            InnerLayer(**shared(), qkv_proj=matrix(self._query_size + 2 * self._key_size, config.hidden_size))
            for _ in range(config.num_hidden_layers - 1)
        ]
        self.last_layer = LastLayer(
            **shared(),
            q_proj=matrix(self._query_size, config.hidden_size),
            kv_proj=matrix(2 * self._key_size, config.hidden_size),
        )
        self.norm = norm()
        self._cos_sin_cache = _cos_sin_cache(config).to(device)

    def destinations(self) -> dict[str, Destination]:
        """Where each tensor of a checkpoint goes, by its name in transformers' MistralModel."""
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        size = self._key_size
        destinations: dict[str, Destination] = {"embed_tokens.weight": self.embed_tokens, "norm.weight": self.norm}
        layers: list[InnerLayer | LastLayer] = [*self.layers, self.last_layer]
        for index, layer in enumerate(layers):
            if isinstance(layer, InnerLayer):
                queries, keys, first = layer.qkv_proj, layer.qkv_proj, self._query_size
            else:
                queries, keys, first = layer.q_proj, layer.kv_proj, 0
            parts: dict[str, Destination] = {
                "input_layernorm": layer.input_layernorm,
                "self_attn.q_proj": queries.destination(0, self._query_size),
                "self_attn.k_proj": keys.destination(first, first + size),
                "self_attn.v_proj": keys.destination(first + size, first + 2 * size),
                "self_attn.o_proj": layer.o_proj.destination(0, hidden),
                "post_attention_layernorm": layer.post_attention_layernorm,
                "mlp.gate_proj": layer.gate_up_proj.destination(0, intermediate),
                "mlp.up_proj": layer.gate_up_proj.destination(intermediate, 2 * intermediate),
                "mlp.down_proj": layer.down_proj.destination(0, hidden),
            }
            destinations |= {f"layers.{index}.{name}.weight": destination for name, destination in parts.items()}
        return destinations

    def prepack(self) -> bool:
        """As in `e5.network.model.Network`."""
        return linear.prepack((*self.layers, self.last_layer))

    def embed(self, batch: PackedBatch) -> Tensor:
        """T tokens of N texts → the last tokens' hidden states [N, D] in `dtype`."""
        hidden = torch.nn.functional.embedding(batch.input_ids, self.embed_tokens)  # [T, D]
        cos_sin = self.ops.gather_cos_sin(self._cos_sin_cache, batch.position_ids, self.dtype)  # [T, d]
        residual: Tensor | None = None
        for layer in self.layers:
            normed = self._add_rms_norm(hidden, residual, layer.input_layernorm, layer.qkv_proj)
            residual = self._attention(layer, normed, cos_sin, batch)
            normed = self._add_rms_norm(hidden, residual, layer.post_attention_layernorm, layer.gate_up_proj)
            residual = self._mlp(layer, normed)
        return self._last_layer(hidden, residual, cos_sin, batch)

    def compile_kernels(self) -> None:
        """Compile the kernels that the layers call; if that fails, use torch's operators."""
        self.ops = fused_ops.compiled(self.ops, self._call_each)

    def _call_each(self, ops: FusedOps) -> None:
        config, eps, layer = self.config, self.config.rms_norm_eps, self.last_layer
        rows = torch.zeros(2, config.hidden_size, device=self.device, dtype=self.dtype)
        heads = rows.new_zeros(2, config.num_attention_heads, config.head_dim)
        gate_up = rows.new_zeros(2, 2 * config.intermediate_size)
        for residual in (None, rows):
            for dtype in {self.dtype, layer.q_proj.input_dtype}:
                ops.add_rms_norm(rows, residual, rows[0], eps, dtype)
        ops.apply_rope(heads, torch.zeros(2, config.head_dim, device=self.device))
        ops.silu_and_mul(gate_up, layer.down_proj.input_dtype)
        ops.cast(heads.flatten(1), layer.o_proj.input_dtype)

    def _add_rms_norm(self, hidden: Tensor, residual: Tensor | None, weight: Tensor, layer: Linear) -> Activations:
        """hidden [T, D] += residual, in place; → its norm [T, D] as input of `layer`."""
        return self.ops.add_rms_norm(hidden, residual, weight, self.config.rms_norm_eps, layer.input_dtype)

    def _attention(self, layer: InnerLayer, normed: Activations, cos_sin: Tensor, batch: PackedBatch) -> Tensor:
        """[T, D] → [T, D]."""
        heads, key_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qkv = self._split_heads(layer.qkv_proj(normed))  # [T, H + 2K, d]
        self.ops.apply_rope(qkv[:, : heads + key_heads], cos_sin)
        query, key, value = torch.split(qkv, [heads, key_heads, key_heads], dim=1)
        window = self.config.sliding_window
        attended = packed_attention(query, key, value, batch, causal=True, scale=self._scale, sliding_window=window)
        return layer.o_proj(self.ops.cast(attended.flatten(1), layer.o_proj.input_dtype))

    def _mlp(self, layer: Layer, normed: Activations) -> Tensor:
        """[T, D] → [T, D]."""
        return layer.down_proj(self.ops.silu_and_mul(layer.gate_up_proj(normed), layer.down_proj.input_dtype))

    def _last_layer(self, hidden: Tensor, residual: Tensor | None, cos_sin: Tensor, batch: PackedBatch) -> Tensor:
        """[T, D] → [N, D], the last tokens' hidden states after the final norm."""
        layer = self.last_layer
        texts = len(batch.cu_seqlens) - 1
        last = batch.cu_seqlens[1:].long() - 1  # [N]; on CPUs [M ≥ N], so that products have few shapes
        if batch.bucket_step:
            last = torch.nn.functional.pad(last, (0, bucket_size(texts, batch.bucket_step) - texts))
        normed = self._add_rms_norm(hidden, residual, layer.input_layernorm, layer.kv_proj)  # [T, D]
        query = self._split_heads(layer.q_proj(linear.select(normed, last)))  # [M, H, d]
        key_value = self._split_heads(layer.kv_proj(normed))  # [T, 2K, d]
        key, value = torch.split(key_value, self.config.num_key_value_heads, dim=1)
        self.ops.apply_rope(query, cos_sin.index_select(0, last))
        self.ops.apply_rope(key, cos_sin)
        window = self.config.sliding_window
        attended = last_token_attention(query, key, value, batch, scale=self._scale, sliding_window=window)  # [M, H, d]
        hidden = hidden.index_select(0, last)  # [M, D]
        residual = layer.o_proj(self.ops.cast(attended.flatten(1), layer.o_proj.input_dtype))
        normed = self._add_rms_norm(hidden, residual, layer.post_attention_layernorm, layer.gate_up_proj)
        residual = self._mlp(layer, normed)
        normed = self.ops.add_rms_norm(hidden, residual, self.norm, self.config.rms_norm_eps, self.dtype)
        return normed.values[:texts]

    def _split_heads(self, rows: Tensor) -> Tensor:
        """[T, heads · d] → [T, heads, d]."""
        return rows.view(len(rows), -1, self.config.head_dim)


def _cos_sin_cache(config: Config) -> Tensor:
    """float32 [P, d]: each position's cosines, then its sines. Computed on the CPU, so that all devices have the same.

    The angle of position p and pair i is p · theta^(−2i/d).
    """
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    positions = torch.arange(config.max_position_embeddings).float()
    angles = torch.outer(positions, 1.0 / config.rope_theta**exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=1)
