"""Models that this package's two loops do not compute: transformers' own module, one length of text at a time.

Equally long texts need no padding and no mask, so any architecture gives the vectors that it gives for each text alone.
The price is a pass for each length of a batch: slower than a packed batch, most of all on a GPU.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e5.catalog import Pooling
from e5.errors import WeightsError
from e5.network.batches import PackedBatch
from e5.network.linear import Destination
from e5.network.pooling import POOLINGS
from e5.weights import stock
from e5.weights.checkpoint import is_weight


class StockModel:
    """One model's weights, uninitialized until `destinations()` are filled, its forward pass and its pooling."""

    capturable = False  # embed slices by the lengths on the host, which a graph would freeze
    padding_idx: int | None = None  # the module computes positions from the token ids

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, pooling: Pooling) -> None:
        """`folder`: the one with config.json. Raises WeightsError for a model that does not embed texts."""
        module = stock.build(folder, device, dtype)
        config: Any = module.config
        hidden_size = getattr(config, "hidden_size", None)
        if module.main_input_name != "input_ids" or config.is_encoder_decoder or not isinstance(hidden_size, int):
            raise WeightsError(f"{folder} holds a {type(module).__name__}, which has no hidden state for each token")
        self.module = module.eval().requires_grad_(False)
        self.device, self.dtype, self.pool = device, dtype, POOLINGS[pooling]
        self.dimensions = hidden_size
        self.max_positions = _max_positions(module)

    def destinations(self) -> dict[str, Destination]:
        """Where each tensor of a checkpoint goes, by its name in transformers' module."""
        return {name: weight for name, weight in self.module.named_parameters() if is_weight(name)}

    def prepack(self) -> bool:
        """transformers' modules multiply their weights as they are."""
        return False

    def embed(self, batch: PackedBatch) -> Tensor:
        """T tokens of N texts → pooled vectors float32 [N, D]."""
        outputs = []
        for run in batch.runs:
            tokens = batch.input_ids[run.start : run.start + run.count * run.length]
            input_ids = tokens.view(run.count, run.length)
            output = self.module(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
            outputs.append(output.last_hidden_state.flatten(0, 1))  # [count · length, D]
        return self.pool(torch.cat(outputs), batch.cu_seqlens)


def _max_positions(module: nn.Module) -> int:
    """The longest text, in tokens including special ones, that the model has positions for.

    RoBERTa's and its descendants' positions begin after the padding token's.
    """
    limits = [int(getattr(module.config, "max_position_embeddings", None) or sys.maxsize)]
    for name, table in module.named_modules():
        if isinstance(table, nn.Embedding) and name.endswith("position_embeddings"):
            limits.append(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    return min(limits)
