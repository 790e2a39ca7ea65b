"""The embedded model's forward pass for training: Mistral on packed texts, with gradients.

Texts are sorted by length, and attention runs over all texts of one length as one array, without padding. The last
layer computes keys and values for all tokens but queries for the last ones only, as `e5.network.decoder` does. Weights
are a mapping from the names of transformers' checkpoint to tensors, so one function runs the base and, after
`merge_lora`, base and adapter. tests/training/test_train_tiny.py compares it with transformers' MistralModel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The adapter's target modules: all matrices of a layer, as in the flagship's adapter."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture, a small Mistral-7B-v0.1, in config.json's names.

    `semantic_size`: the leading dimensions of a vector, which are trained towards the teacher's.
    """

    vocab_size: int = 32000
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    semantic_size: int = 252

    def projections(self) -> dict[str, tuple[int, int]]:
        """Each projection's name in the checkpoint, with its output and input sizes."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        sizes = {
            "self_attn.q_proj": (queries, self.hidden_size),
            "self_attn.k_proj": (keys, self.hidden_size),
            "self_attn.v_proj": (keys, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, queries),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }
        layers = range(self.num_hidden_layers)
        return {f"layers.{layer}.{name}": size for layer in layers for name, size in sizes.items()}


@dataclass(frozen=True)
class TrainingBatch:
    """N texts sorted by length.

    `input_ids` [T]: special tokens included. `runs`: (number of texts, length) for each length. `order` [N]: the index
    of each sorted text among the given texts.
    """

    input_ids: Tensor
    runs: tuple[tuple[int, int], ...]
    order: Tensor

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


def pack(texts: Sequence[Sequence[int]]) -> TrainingBatch:
    """A batch from the token ids of N texts, special tokens included."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    runs: list[tuple[int, int]] = []
    for index in order:
        length = len(texts[index])
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    input_ids = torch.tensor([token for index in order for token in texts[index]])
    return TrainingBatch(input_ids, tuple(runs), torch.tensor(order))


def forward(weights: Weights, config: ModelConfig, batch: TrainingBatch) -> Tensor:
    """Vectors [N, D] in float32, in the batch's sorted order. The projections' dtype is the dtype of computation."""
    device = weights["norm.weight"].device
    lengths = [length for count, length in batch.runs for _ in range(count)]
    last_tokens = torch.tensor(lengths, device=device).cumsum(0) - 1
    position_ids = torch.cat([torch.arange(length, device=device).repeat(count) for count, length in batch.runs])
    hidden = functional.embedding(batch.input_ids.to(device), weights["embed_tokens.weight"])  # [T, D]
    cos_sin = _rope(config, position_ids, weights["layers.0.mlp.up_proj.weight"].dtype)
    for layer in range(config.num_hidden_layers):
        selected = last_tokens if layer == config.num_hidden_layers - 1 else None
        attended, hidden = _attention(weights, config, layer, hidden, cos_sin, batch, selected)
        hidden = hidden + attended  # [T, D]; in the last layer [N, D]
        hidden = hidden + _mlp(weights, config, layer, hidden)
    return _rms_norm(hidden, weights["norm.weight"], config.rms_norm_eps)


def _attention(
    weights: Weights,
    config: ModelConfig,
    layer: int,
    hidden: Tensor,
    cos_sin: tuple[Tensor, Tensor],
    batch: TrainingBatch,
    selected: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The attention's output and `hidden`, both for the `selected` tokens only, if given."""
    prefix = f"layers.{layer}.self_attn"
    dtype = weights[f"{prefix}.q_proj.weight"].dtype
    normed = _rms_norm(hidden, weights[f"layers.{layer}.input_layernorm.weight"], config.rms_norm_eps).to(dtype)
    cos, sin = cos_sin
    key = _heads(normed, weights[f"{prefix}.k_proj.weight"], config.num_key_value_heads)
    value = _heads(normed, weights[f"{prefix}.v_proj.weight"], config.num_key_value_heads)
    key = _rotate(key, cos, sin)
    if selected is not None:
        normed, hidden = normed.index_select(0, selected), hidden.index_select(0, selected)
        cos, sin = cos.index_select(0, selected), sin.index_select(0, selected)
    query = _rotate(_heads(normed, weights[f"{prefix}.q_proj.weight"], config.num_attention_heads), cos, sin)
    key_counts = [count * length for count, length in batch.runs]
    query_counts = [count for count, _ in batch.runs] if selected is not None else key_counts
    queries = torch.split(query, query_counts)
    keys, values = torch.split(key, key_counts), torch.split(value, key_counts)
    attended = torch.cat(
        [_attend(config, run[0], *parts) for run, *parts in zip(batch.runs, queries, keys, values, strict=True)]
    )
    return functional.linear(attended, weights[f"{prefix}.o_proj.weight"]).to(hidden.dtype), hidden


def _attend(config: ModelConfig, count: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention for `count` texts of one length L.

    query [count · Q, H, d], key and value [count · L, K, d] → [count · Q, H · d]. Q is L, or 1 for the last tokens.
    Two float32 products, batched over texts and key heads: with gradients 45 ms for 8,192 tokens of short texts on two
    cores, where torch's own attention takes 200.
    """
    kv_heads, head_dim = config.num_key_value_heads, config.head_dim
    shared = config.num_attention_heads // kv_heads
    groups, queries, length = count * kv_heads, len(query) // count, len(key) // count
    dtype = query.dtype
    query = query.float().view(count, queries, kv_heads, shared, head_dim).permute(0, 2, 3, 1, 4)
    query = query.reshape(groups, shared * queries, head_dim)
    key = key.float().view(count, length, kv_heads, head_dim).transpose(1, 2).reshape(groups, length, head_dim)
    value = value.float().view(count, length, kv_heads, head_dim).transpose(1, 2).reshape(groups, length, head_dim)
    scores = (query @ key.transpose(1, 2)).view(groups, shared, queries, length) * head_dim**-0.5
    if queries > 1:
        scores = scores + torch.full((length, length), -math.inf, device=key.device).triu(1)
    attended = scores.softmax(-1).view(groups, shared * queries, length) @ value
    attended = attended.view(count, kv_heads, shared, queries, head_dim).permute(0, 3, 1, 2, 4)
    output: Tensor = attended.reshape(count * queries, config.num_attention_heads * head_dim).to(dtype)
    return output


def _mlp(weights: Weights, config: ModelConfig, layer: int, hidden: Tensor) -> Tensor:
    prefix = f"layers.{layer}.mlp"
    up_proj = weights[f"{prefix}.up_proj.weight"]
    norm = weights[f"layers.{layer}.post_attention_layernorm.weight"]
    normed = _rms_norm(hidden, norm, config.rms_norm_eps).to(up_proj.dtype)
    gate = functional.silu(functional.linear(normed, weights[f"{prefix}.gate_proj.weight"]))
    gated = gate * functional.linear(normed, up_proj)
    return functional.linear(gated, weights[f"{prefix}.down_proj.weight"]).to(hidden.dtype)


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale: Tensor = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)
    return hidden * scale * weight


def _heads(hidden: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Project [T, D] to [T, heads, d]."""
    return functional.linear(hidden, weight).view(len(hidden), heads, -1)


def _rope(config: ModelConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, d/2] of each token's rotary angles."""
    exponents = torch.arange(0, config.head_dim, 2, device=position_ids.device).float() / config.head_dim
    angles = (position_ids.float().unsqueeze(1) / config.rope_theta**exponents).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, y = heads.chunk(2, dim=-1)
    return torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1)


def initial_weights(config: ModelConfig, static: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Float32 weights whose output is about the average of the static token vectors `static` [V, semantic_size].

    The dimensions beyond the semantic ones give all embeddings the same length, so that the norms before the layers
    keep the tokens' relative weights. The last layer attends to all tokens equally and passes on their vectors; the
    other layers add little. A random initialization of the usual size would destroy that geometry. The averaging layer
    must be the last: only after other layers can a token know whether it is before or after `Query:`, which the
    adapter has to learn.
    """
    hidden_size, semantic_size, head_dim = config.hidden_size, config.semantic_size, config.head_dim
    if config.num_key_value_heads * head_dim != hidden_size:
        raise ValueError(f"values must hold a whole vector: num_key_value_heads × head_dim is not {hidden_size}")
    spare = hidden_size - semantic_size
    length = float(static.norm(dim=1).max()) * 1.05
    filler = (length**2 - static.square().sum(1)).clamp(min=0).sqrt() / math.sqrt(spare)
    embeddings = torch.cat((static, filler.unsqueeze(1).expand(-1, spare)), dim=1).contiguous()
    weights = {"embed_tokens.weight": embeddings}
    for name, (outputs, inputs) in config.projections().items():
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * 0.02
    for layer in range(config.num_hidden_layers):
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"layers.{layer}.{part}.weight"] = torch.ones(hidden_size)
        weights[f"layers.{layer}.self_attn.o_proj.weight"] *= 0.0007 / 0.02
        weights[f"layers.{layer}.mlp.down_proj.weight"] *= 0.0005 / 0.02
    last = f"layers.{config.num_hidden_layers - 1}.self_attn"
    weights[f"{last}.v_proj.weight"] = torch.eye(hidden_size)
    shared = config.num_attention_heads // config.num_key_value_heads
    o_proj = torch.zeros(hidden_size, config.num_key_value_heads, shared, head_dim)
    for row in range(semantic_size):
        o_proj[row, row // head_dim, :, row % head_dim] = 3.0 / shared
    weights[f"{last}.o_proj.weight"] = o_proj.view(hidden_size, -1)
    norm = torch.ones(hidden_size)
    norm[semantic_size:] = 0
    weights["norm.weight"] = norm
    return weights


def merge_lora(base: Weights, adapter: Weights, scaling: float) -> dict[str, Tensor]:
    """The base's weights with the adapter merged: W + scaling · B A."""
    weights = dict(base)
    for name in {name.rpartition(".lora_")[0] for name in adapter}:
        delta = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
        weights[f"{name}.weight"] = base[f"{name}.weight"] + scaling * delta
    return weights


def cast_projections(weights: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
    """The projections in `dtype`, all other weights unchanged. Gradients reach the originals."""
    return {name: weight.to(dtype) if "_proj." in name else weight for name, weight in weights.items()}
