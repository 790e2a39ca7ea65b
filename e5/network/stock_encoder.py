"""Encoders that `e5.network.encoder` does not compute: transformers' own modules with packed attention.

`register()` registers the attention implementation `e5_packed` with transformers. The modules pass forward's keyword
arguments on to it, so it receives the batch as `packed=PackedBatch`. The mask function returns no mask: the batch's
lengths already separate the texts.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.initialization import no_init_weights

from e5.catalog import Pooling
from e5.network.attention import packed_attention
from e5.network.batches import PackedBatch
from e5.network.encoder import max_positions, padding_idx
from e5.network.linear import Destination
from e5.network.pooling import POOLINGS

NAME = "e5_packed"


class StockEncoder:
    """One encoder's weights, uninitialized until `destinations()` are filled, its forward pass and its pooling."""

    capturable = False  # transformers' modules may read values on the host

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, pooling: Pooling) -> None:
        """`folder`: the one with config.json."""
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        register()
        with no_init_weights(), device:
            module = AutoModel.from_config(config, dtype=dtype, attn_implementation=NAME, add_pooling_layer=False)
        self.module = module.eval().requires_grad_(False)
        self.device, self.dtype, self._pool = device, dtype, POOLINGS[pooling]
        self.dimensions = int(config.hidden_size)
        self.padding_idx = padding_idx(config)
        self.max_positions = max_positions(config)

    def destinations(self) -> dict[str, Destination]:
        """Where each tensor of a checkpoint goes, by its name in transformers' module."""
        return dict(self.module.named_parameters())

    def prepack(self) -> bool:
        """transformers' modules multiply their weights as they are."""
        return False

    def embed(self, batch: PackedBatch) -> Tensor:
        """T tokens of N texts → pooled vectors float32 [N, D]."""
        input_ids = batch.input_ids.unsqueeze(0)
        output = self.module(
            input_ids=input_ids,
            position_ids=batch.position_ids.unsqueeze(0),
            token_type_ids=torch.zeros_like(input_ids),  # the default costs a gather by position in each pass
            packed=batch,
        )
        hidden: Tensor = output.last_hidden_state[0]  # [T, D], then rows of filler if the batch has any
        return self._pool(hidden[: batch.tokens], batch.cu_seqlens)


def register() -> None:
    """Register `attn_implementation="e5_packed"` with transformers. Can be called more than once."""
    AttentionInterface.register(NAME, _attention_interface)
    AttentionMaskInterface.register(NAME, _no_mask)


def _attention_interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedBatch,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,  # dropout, position_ids and others that transformers passes to every implementation
) -> tuple[Tensor, None]:
    """transformers' interface: query [1, H, T, D], key and value [1, K, T, D] → ([1, T, H, D], None)."""
    out = packed_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packed,
        causal=bool(module.is_causal),
        scale=scaling,
        sliding_window=sliding_window,
    )
    return out.unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None
