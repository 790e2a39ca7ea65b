"""The decoder's last layer, computed for each text's last token alone: the only one that pooling reads.

Keys and values are still needed of every token; queries, the output projection and the feed-forward part are not.
They are 86 % of a layer's multiplications: 29 % of all in the three layers of the embedded model, 3 % in the 32 of
the flagship. The sub-modules are the stock layer's own, and so is the arithmetic for the tokens that stay.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

from e5.attention import last_token_attention
from e5.batches import PackedBatch, rounded


def keep_last_tokens(layer: Any) -> None:
    """Give a MistralDecoderLayer a forward pass that maps [1, T, D] to [1, N, D], a row for each text.

    Where the batch has filler, rows of filler follow: as few shapes as in the other layers.
    """
    layer.forward = partial(_forward, layer)


def _forward(
    layer: Any, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], packed: PackedBatch, **_: Any
) -> Tensor:
    last = packed.cu_seqlens[1:].long() - 1
    if packed.few_shapes:
        last = torch.nn.functional.pad(last, (0, rounded(len(last)) - len(last)))
    inputs = layer.input_layernorm(hidden_states)
    hidden = hidden_states[:, last] + _attend(layer.self_attn, inputs, last, position_embeddings, packed)
    output: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return output


def _attend(attention: Any, inputs: Tensor, last: Tensor, rotary: tuple[Tensor, Tensor], packed: PackedBatch) -> Tensor:
    def heads(projected: Tensor) -> Tensor:  # [1, tokens, heads · D] → [1, heads, tokens, D]
        return projected.view(1, projected.shape[1], -1, attention.head_dim).transpose(1, 2)

    cos, sin = rotary  # [1, T, D]
    key, value = heads(attention.k_proj(inputs)), heads(attention.v_proj(inputs))
    query = heads(attention.q_proj(inputs[:, last]))
    query, _ = apply_rotary_pos_emb(query, query[:, :0], cos[:, last], sin[:, last])
    key, _ = apply_rotary_pos_emb(key, key[:, :0], cos, sin)
    out = last_token_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packed,
        scale=attention.scaling,
        window=attention.config.sliding_window,
    )
    projected: Tensor = attention.o_proj(out.flatten(1).unsqueeze(0))
    return projected
