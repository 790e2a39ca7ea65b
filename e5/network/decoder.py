"""Mistral's decoder as one loop over its layers: the token ids of N texts → the hidden state of each one's last token.

The arithmetic is that of transformers' MistralModel, to which the tests hold it. What differs is how it is laid out:
query, key and value are one matrix, gate and up another, so a layer is four products and five passes in between; and
the last layer is computed for each text's last token alone, the only one that pooling reads. Keys and values are still
needed of every token there; the rest is 86 % of a layer's multiplications: 29 % of all in the three layers of the
embedded model, 3 % in the 32 of the flagship.

No part of transformers is imported: that alone would take 2.5 s of every start.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from e5.errors import WeightsError
from e5.network import fused_ops, linear
from e5.network.attention import last_token_attention, packed_attention
from e5.network.batches import PackedBatch, bucket_size
from e5.network.linear import Dense, Destination, Float8, Rows
from e5.weights import checkpoint, reading

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """What a config.json says about a Mistral decoder. `window`: how many tokens a token sees, itself included."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    positions: int
    window: int | None
    theta: float
    epsilon: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From config.json as transformers writes it, release 4 or 5. Raises WeightsError for what is not covered.

        What a file leaves out is as in transformers' MistralConfig.
        """
        said, path = checkpoint.config(folder), folder / "config.json"
        rope: Mapping[str, Any] = said.get("rope_parameters") or said.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        for name, value, right in (
            ("hidden_act", said.get("hidden_act", "silu"), "silu"),
            ("rope_type", kind, "default"),
            ("quantization_config", said.get("quantization_config"), None),
        ):
            if value != right:
                raise WeightsError(f"{path} asks for {name}={value!r}, which is not computed here: pass other weights")
        try:
            width, heads = int(said.get("hidden_size", 4096)), int(said.get("num_attention_heads", 32))
            window = said.get("sliding_window", 4096)
            return cls(
                vocabulary=int(said.get("vocab_size", 32000)),
                width=width,
                inner=int(said.get("intermediate_size", 14336)),
                layers=int(said.get("num_hidden_layers", 32)),
                heads=heads,
                key_heads=int(said.get("num_key_value_heads", 8)),
                head_width=int(said.get("head_dim") or width // heads),
                positions=int(said.get("max_position_embeddings", 131072)),
                window=None if window is None else int(window),
                theta=float(rope.get("rope_theta") or said.get("rope_theta") or 10000.0),
                epsilon=float(said.get("rms_norm_eps", 1e-6)),
            )
        except (TypeError, ValueError) as error:
            raise reading.unreadable(path, error) from error


@dataclass(frozen=True)
class Layer:
    """One layer's weights: norms [D], `qkv` [(H + 2K) · d, D], `out` [D, H · d], `gate_up` [2F, D], `down` [D, F]."""

    attention_norm: Tensor
    qkv: Dense | Float8
    out: Dense | Float8
    mlp_norm: Tensor
    gate_up: Dense | Float8
    down: Dense | Float8


class Decoder:
    """The weights of one model, empty until `destinations()` are filled, and its forward pass."""

    pools_last_token = True

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, float8: bool = False) -> None:
        """`dtype`: of activations, embedding and norms, and of the linear layers unless they are float8."""
        self.config, self.device, self.dtype, self.float8 = config, device, dtype, float8
        self.dimensions = config.width
        self.max_positions = config.positions
        self.position_padding: int | None = None
        self._scale = config.head_width**-0.5
        self._queries = config.heads * config.head_width
        self._keys = config.key_heads * config.head_width

        def vector() -> Tensor:
            return torch.empty(config.width, device=device, dtype=dtype)

        def matrix(outputs: int, inputs: int) -> Dense | Float8:
            return linear.empty(outputs, inputs, device, dtype, float8)

        self.embedding = torch.empty(config.vocabulary, config.width, device=device, dtype=dtype)
        self.layers = [
            Layer(
                attention_norm=vector(),
                qkv=matrix(self._queries + 2 * self._keys, config.width),
                out=matrix(config.width, self._queries),
                mlp_norm=vector(),
                gate_up=matrix(2 * config.inner, config.width),
                down=matrix(config.width, config.inner),
            )
            for _ in range(config.layers)
        ]
        self.norm = vector()
        self._angles = _angles(config).to(device)

    def destinations(self) -> dict[str, Destination]:
        """Where each tensor of a checkpoint goes, by its name in the bare stock model."""
        queries, keys, inner, width = self._queries, self._keys, self.config.inner, self.config.width
        destinations: dict[str, Destination] = {"embed_tokens.weight": self.embedding, "norm.weight": self.norm}
        for index, layer in enumerate(self.layers):
            parts: dict[str, Destination] = {
                "input_layernorm": layer.attention_norm,
                "self_attn.q_proj": layer.qkv.destination(0, queries),
                "self_attn.k_proj": layer.qkv.destination(queries, queries + keys),
                "self_attn.v_proj": layer.qkv.destination(queries + keys, queries + 2 * keys),
                "self_attn.o_proj": layer.out.destination(0, width),
                "post_attention_layernorm": layer.mlp_norm,
                "mlp.gate_proj": layer.gate_up.destination(0, inner),
                "mlp.up_proj": layer.gate_up.destination(inner, 2 * inner),
                "mlp.down_proj": layer.down.destination(0, width),
            }
            destinations |= {f"layers.{index}.{name}.weight": destination for name, destination in parts.items()}
        return destinations

    def forward(self, batch: PackedBatch) -> Tensor:
        """T tokens of N texts → [N, D] in `dtype`; where the batch has filler, rows of filler follow.

        Tokens whose hidden states nothing reads are left out of the last layer.
        """
        hidden = torch.nn.functional.embedding(batch.input_ids, self.embedding)
        turn = fused_ops.rotation(self._angles, batch.position_ids, self.dtype)
        change: Tensor | None = None
        for layer in self.layers[:-1]:
            rows = self._normed(hidden, change, layer.attention_norm)
            change = self._attend(layer, rows, turn, batch)
            rows = self._normed(hidden, change, layer.mlp_norm)
            change = layer.down(fused_ops.gate(layer.gate_up(rows), self.float8))
        return self._last_layer(hidden, change, turn, batch)

    def compile_kernels(self) -> None:
        """Compile what is launched between the products, where that is compiled at its first use: half a second each.

        Where it cannot be (no Triton, no C compiler for its launchers), torch's operators do it, and the log says so.
        """
        config = self.config
        rows = torch.zeros(2, config.width, device=self.device, dtype=self.dtype)
        try:
            for change in (None, rows):
                for float8 in {False, self.float8}:
                    fused_ops.add_rms_norm(rows, change, rows[0], config.epsilon, float8)
            heads = torch.zeros(2, config.heads, config.head_width, device=self.device, dtype=self.dtype)
            fused_ops.rotate(heads, torch.zeros(2, config.head_width, device=self.device))
            fused_ops.gate(torch.zeros(2, 2 * config.inner, device=self.device, dtype=self.dtype), self.float8)
            fused_ops.rows(heads.flatten(1), self.float8)
        except Exception as error:  # Triton raises what its compilers, the C compiler and the driver raise
            fused_ops.use_kernels = False
            log.warning("layers run without fused kernels, which could not be compiled (%s): they are slower", error)

    def _attend(self, layer: Layer, rows: Rows, turn: Tensor, batch: PackedBatch) -> Tensor:
        """rows [T, D] → [T, D]."""
        qkv = self._heads(layer.qkv(rows))
        heads, key_heads = self.config.heads, self.config.key_heads
        fused_ops.rotate(qkv[:, : heads + key_heads], turn)
        query, key, value = torch.split(qkv, [heads, key_heads, key_heads], dim=1)
        attended = packed_attention(query, key, value, batch, causal=True, scale=self._scale, window=self.config.window)
        return layer.out(fused_ops.rows(attended.flatten(1), self.float8))

    def _last_layer(self, hidden: Tensor, change: Tensor | None, turn: Tensor, batch: PackedBatch) -> Tensor:
        layer = self.layers[-1]
        last = batch.cu_seqlens[1:].long() - 1
        if batch.bucketed:
            last = torch.nn.functional.pad(last, (0, bucket_size(len(last)) - len(last)))
        rows = self._normed(hidden, change, layer.attention_norm)
        query = self._heads(layer.qkv.part(0, self._queries)(linear.select(rows, last)))
        both = self._heads(layer.qkv.part(self._queries, self._queries + 2 * self._keys)(rows))
        key, value = torch.split(both, self.config.key_heads, dim=1)
        fused_ops.rotate(query, turn.index_select(0, last))
        fused_ops.rotate(key, turn)
        attended = last_token_attention(query, key, value, batch, scale=self._scale, window=self.config.window)
        hidden = hidden.index_select(0, last)
        change = layer.out(fused_ops.rows(attended.flatten(1), self.float8))
        rows = self._normed(hidden, change, layer.mlp_norm)
        change = layer.down(fused_ops.gate(layer.gate_up(rows), self.float8))
        normed = fused_ops.add_rms_norm(hidden, change, self.norm, self.config.epsilon)
        assert isinstance(normed, Tensor)
        return normed

    def _normed(self, hidden: Tensor, change: Tensor | None, weight: Tensor) -> Rows:
        return fused_ops.add_rms_norm(hidden, change, weight, self.config.epsilon, self.float8)

    def _heads(self, projected: Tensor) -> Tensor:
        """[T, heads · d] → [T, heads, d]."""
        return projected.view(len(projected), -1, self.config.head_width)


def _angles(config: Config) -> Tensor:
    """float32 [P, d]: the cosines, then the sines, of each position's angles. Made on the CPU: alike on all devices."""
    steps = torch.arange(0, config.head_width, 2).float() / config.head_width
    angles = torch.outer(torch.arange(config.positions).float(), 1.0 / config.theta**steps)
    return torch.cat((angles.cos(), angles.sin()), dim=1)
