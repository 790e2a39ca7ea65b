"""peft's merge in float64 on the CPU: the reference for this package's own merge.

Rounded once to the target dtype, it depends neither on the device nor on the order of summation.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from e5.weights import writer
from e5.weights.files import LocalWeights


def by_peft(files: LocalWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """The merged weights by bare name, on the CPU. Needs 16 bytes per parameter at its peak."""
    from peft import PeftModel  # here, because only this check needs peft

    base: Any = AutoModel.from_pretrained(files.checkpoint, dtype=torch.float64, local_files_only=True)
    model: Any = PeftModel.from_pretrained(base, str(files.adapter)).double().merge_and_unload()
    return {name: parameter.detach().to(dtype).contiguous() for name, parameter in model.named_parameters()}


def save(files: LocalWeights, tensors: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write the tensors with the base's configuration: a checkpoint that lacks only the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.from_pretrained(files.checkpoint, local_files_only=True)
    writer.write_config(folder, config, "MistralModel", dtype)
    writer.write_tensors(folder, {name: tensor.shape for name, tensor in tensors.items()}, dtype, tensors.items())
