"""The family's encoders, BERT and XLM-R: stock modules of transformers, given packed attention.

`register()` makes it known to transformers as the attention implementation `e5_packed`. The modules hand their forward
keyword arguments on to it, so the batch's layout arrives as `packed=PackedBatch`; the mask function gives no mask,
because the layout says it all.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.initialization import no_init_weights

from e5.network.attention import packed_attention
from e5.network.batches import PackedBatch
from e5.network.linear import Destination

NAME = "e5_packed"


class Encoder:
    """An encoder, empty until `destinations()` are filled, and its forward pass."""

    pools_last_token = False

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """`folder`: with the config.json."""
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        register()
        with no_init_weights(), device:
            module = AutoModel.from_config(config, dtype=dtype, attn_implementation=NAME, add_pooling_layer=False)
        self.module = module.eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.dimensions = int(config.hidden_size)
        self.position_padding = position_padding(config)
        self.max_positions = max_positions(config)

    def destinations(self) -> dict[str, Destination]:
        """Where each tensor of a checkpoint goes."""
        return dict(self.module.named_parameters())

    def forward(self, batch: PackedBatch) -> Tensor:
        """[T, D] in `dtype`, with rows of filler where the batch has filler."""
        row = batch.input_ids.unsqueeze(0)
        # Given no token types, the modules look them up by position, which costs a gather a pass.
        output = self.module(
            input_ids=row,
            position_ids=batch.position_ids.unsqueeze(0),
            token_type_ids=torch.zeros_like(row),
            packed=batch,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0]


def position_padding(config: Any) -> int | None:
    """XLM-R's padding token, after which its positions begin; None for models whose positions begin at 0."""
    return int(config.pad_token_id) if config.model_type == "xlm-roberta" else None


def max_positions(config: Any) -> int:
    """How many tokens, special ones included, the checkpoint has positions for."""
    padding_id = position_padding(config)
    return int(config.max_position_embeddings) - (0 if padding_id is None else padding_id + 1)


def register() -> None:
    """Make `attn_implementation="e5_packed"` known to transformers. Calling it again changes nothing."""
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
    **_: Any,  # dropout, position_ids, …: what else transformers hands to every implementation
) -> tuple[Tensor, None]:
    """transformers' side: query [1, H, T, D], key and value [1, K, T, D] → ([1, T, H, D], None)."""
    out = packed_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packed,
        causal=bool(module.is_causal),
        scale=scaling,
        window=sliding_window,
    )
    return out.unsqueeze(0), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None
