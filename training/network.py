"""The embedded model as training sees it: Mistral's forward pass over packed texts, with gradients.

Texts of one length lie side by side, so that attention runs over them as one array and nothing is padded; after the
last layer's keys and values only the last tokens go on, as in `e5.network.decoder`. tests/training/test_train_tiny.py
holds it to transformers' MistralModel. Weights are a mapping from the names of transformers' checkpoint to tensors, so
the very same pass serves the base and, with `merged`, base and adapter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What the adapter adapts: all of a layer's matrices, as the flagship's does."""


@dataclass(frozen=True)
class Shape:
    """The architecture, a small Mistral-7B-v0.1. `semantic`: the dimensions that carry the teacher's space."""

    vocabulary: int = 32000
    width: int = 256
    inner: int = 768
    layers: int = 3
    heads: int = 8
    key_heads: int = 4
    head_width: int = 64
    positions: int = 4096
    theta: float = 10000.0
    epsilon: float = 1e-5
    semantic: int = 252

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Each projection's name in the checkpoint, and its outputs and inputs."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        sizes = {
            "self_attn.q_proj": (queries, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, queries),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }
        return {f"layers.{index}.{name}": size for index in range(self.layers) for name, size in sizes.items()}


@dataclass(frozen=True)
class Packed:
    """Texts in the order of their lengths: token ids [T], and how many texts there are of each length.

    `order`: for each row of the result, which of the given texts it is.
    """

    ids: Tensor
    runs: tuple[tuple[int, int], ...]
    order: Tensor

    @property
    def tokens(self) -> int:
        return len(self.ids)


def pack(texts: Sequence[Sequence[int]]) -> Packed:
    """Token ids of N texts, special tokens included."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    runs: list[tuple[int, int]] = []
    for index in order:
        length = len(texts[index])
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    ids = torch.tensor([token for index in order for token in texts[index]])
    return Packed(ids, tuple(runs), torch.tensor(order))


def forward(weights: Weights, shape: Shape, batch: Packed) -> Tensor:
    """N texts → [N, D] in float32, in the order of `batch.order`. Computed in the dtype of the layers' matrices."""
    device = weights["norm.weight"].device
    ids = batch.ids.to(device)
    lengths = [length for count, length in batch.runs for _ in range(count)]
    ends = torch.tensor(lengths, device=device).cumsum(0)
    last = ends - 1
    positions = torch.cat([torch.arange(length, device=device).repeat(count) for count, length in batch.runs])
    hidden = functional.embedding(ids, weights["embed_tokens.weight"])
    dtype = weights["layers.0.mlp.up_proj.weight"].dtype
    turn = _turn(shape, positions, dtype)
    for index in range(shape.layers):
        only_last = index == shape.layers - 1
        attended, hidden = _attention(weights, shape, index, hidden, turn, batch, last if only_last else None)
        hidden = hidden + attended
        hidden = hidden + _mlp(weights, shape, index, hidden, dtype)
    return _norm(hidden, weights["norm.weight"], shape.epsilon)


def _attention(
    weights: Weights,
    shape: Shape,
    index: int,
    hidden: Tensor,
    turn: tuple[Tensor, Tensor],
    batch: Packed,
    last: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The attention's contribution to `hidden`, and `hidden` itself, of the last tokens only where `last` says so."""
    prefix = f"layers.{index}.self_attn"
    dtype = weights[f"{prefix}.q_proj.weight"].dtype
    rows = _norm(hidden, weights[f"layers.{index}.input_layernorm.weight"], shape.epsilon).to(dtype)
    cos, sin = turn
    key = _heads(rows, weights[f"{prefix}.k_proj.weight"], shape.key_heads)
    value = _heads(rows, weights[f"{prefix}.v_proj.weight"], shape.key_heads)
    key = _rotate(key, cos, sin)
    if last is not None:
        rows, hidden, cos, sin = (one.index_select(0, last) for one in (rows, hidden, cos, sin))
    query = _rotate(_heads(rows, weights[f"{prefix}.q_proj.weight"], shape.heads), cos, sin)
    tokens = [count * length for count, length in batch.runs]
    queries = [count for count, _ in batch.runs] if last is not None else tokens
    parts = zip(
        batch.runs, torch.split(query, queries), torch.split(key, tokens), torch.split(value, tokens), strict=True
    )
    attended = torch.cat([_attend(shape, count, *rest) for (count, _), *rest in parts])
    return functional.linear(attended, weights[f"{prefix}.o_proj.weight"]).to(hidden.dtype), hidden


def _attend(shape: Shape, count: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of `count` texts of one length L: query [count · Q, H, d], key and value [count · L, K, d] →
    [count · Q, H · d], where Q is L, or 1 for the last tokens alone.

    Two products in float32, batched over texts and key heads: with the gradients 45 ms for 8,192 tokens of short texts
    on two cores, where torch's own attention takes 200.
    """
    shared, width = shape.heads // shape.key_heads, shape.head_width
    groups, asked, length = count * shape.key_heads, len(query) // count, len(key) // count
    dtype = query.dtype
    query = query.float().view(count, asked, shape.key_heads, shared, width).permute(0, 2, 3, 1, 4)
    key, value = (one.float().view(count, length, shape.key_heads, width).transpose(1, 2) for one in (key, value))
    products = query.reshape(groups, shared * asked, width) @ key.reshape(groups, length, width).transpose(1, 2)
    products = products.view(groups, shared, asked, length) * width**-0.5
    if asked > 1:
        products = products + torch.full((length, length), -math.inf, device=key.device).triu(1)
    attended = products.softmax(-1).view(groups, shared * asked, length) @ value.reshape(groups, length, width)
    attended = attended.view(count, shape.key_heads, shared, asked, width).permute(0, 3, 1, 2, 4)
    rows: Tensor = attended.reshape(count * asked, shape.heads * width).to(dtype)
    return rows


def _mlp(weights: Weights, shape: Shape, index: int, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    prefix = f"layers.{index}.mlp"
    rows = _norm(hidden, weights[f"layers.{index}.post_attention_layernorm.weight"], shape.epsilon).to(dtype)
    gate = functional.silu(functional.linear(rows, weights[f"{prefix}.gate_proj.weight"]))
    inner = gate * functional.linear(rows, weights[f"{prefix}.up_proj.weight"])
    return functional.linear(inner, weights[f"{prefix}.down_proj.weight"]).to(hidden.dtype)


def _norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    scale: Tensor = torch.rsqrt(rows.square().mean(-1, keepdim=True) + epsilon)
    return rows * scale * weight


def _heads(rows: Tensor, weight: Tensor, heads: int) -> Tensor:
    return functional.linear(rows, weight).view(len(rows), heads, -1)


def _turn(shape: Shape, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, d/2] of each token's angles."""
    steps = torch.arange(0, shape.head_width, 2, device=positions.device).float() / shape.head_width
    angles = (positions.float().unsqueeze(1) / shape.theta**steps).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, y = heads.chunk(2, dim=-1)
    return torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1)


def initial(shape: Shape, static: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights that begin as the average of static token vectors `static` [V, semantic], in float32.

    The rows of the embedding all get one length, which the dimensions beyond the semantic ones fill up; so the norms
    before the layers leave the vectors' own lengths, that is the tokens' weights, alone. The last layer attends to all
    tokens alike and passes their vectors on; what the others add is small. Random starts of the usual size destroy
    that geometry. It has to be the last: after the others a token can know whether it stands before or after `Query:`,
    which is what the adapter is to learn.
    """
    spare = shape.width - shape.semantic
    length = float(static.norm(dim=1).max()) * 1.05
    rest = (length**2 - static.square().sum(1)).clamp(min=0).sqrt() / math.sqrt(spare)
    weights = {"embed_tokens.weight": torch.cat((static, rest.unsqueeze(1).expand(-1, spare)), dim=1).contiguous()}
    for name, (outputs, inputs) in shape.matrices().items():
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * 0.02
    for index in range(shape.layers):
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"layers.{index}.{part}.weight"] = torch.ones(shape.width)
        weights[f"layers.{index}.self_attn.o_proj.weight"] *= 0.0007 / 0.02
        weights[f"layers.{index}.mlp.down_proj.weight"] *= 0.0005 / 0.02
    keys = shape.key_heads * shape.head_width
    assert keys == shape.width, "values are to carry a token's whole vector"
    last = f"layers.{shape.layers - 1}.self_attn"
    weights[f"{last}.v_proj.weight"] = torch.eye(shape.width)
    shared = shape.heads // shape.key_heads
    out = torch.zeros(shape.width, shape.key_heads, shared, shape.head_width)
    for row in range(shape.semantic):
        out[row, row // shape.head_width, :, row % shape.head_width] = 3.0 / shared
    weights[f"{last}.o_proj.weight"] = out.view(shape.width, -1)
    final = torch.ones(shape.width)
    final[shape.semantic :] = 0
    weights["norm.weight"] = final
    return weights


def merged(base: Weights, adapter: Weights, scaling: float) -> dict[str, Tensor]:
    """Base weights with an adapter's products added: W + scaling · B A, under the base's names."""
    weights = dict(base)
    for name in {name.rpartition(".lora_")[0] for name in adapter}:
        change = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
        weights[f"{name}.weight"] = base[f"{name}.weight"] + scaling * change
    return weights


def low_precision(weights: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
    """The layers' matrices in `dtype`, all else as it is; gradients reach the originals."""
    return {name: one.to(dtype) if "_proj." in name else one for name, one in weights.items()}
