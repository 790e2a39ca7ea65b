"""Base and adapter merged by this package, tensor by tensor on a device; and by peft in float64 on the CPU.

The first gives the checkpoint that all engines of a comparison load. The second is the judge of the first: rounded once
to the dtype that is wanted, it is the merge that no device and no order of summation can change.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from e5.weights import checkpoint
from e5.weights.adapter import Adapter
from e5.weights.files import LocalWeights

MAX_SHARD_BYTES = 4_900_000_000
"""The host never holds more than that of a merged model."""


@torch.inference_mode()
def merged(found: LocalWeights, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(bare name, tensor on the device) of each weight, with the arithmetic by which the engine merges."""
    adapter = Adapter(found.adapter) if found.adapter else None
    for name, tensor in checkpoint.tensors(found.checkpoint):
        base = tensor.to(device)
        adapted = adapter.merged(name, base) if adapter else None
        # A copy: what the file gave is good only until the next tensor is asked for.
        yield name, (base if adapted is None else adapted).to(dtype, copy=True)


def by_peft(found: LocalWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same weights by bare name from peft's merge in float64, on the CPU: 16 bytes a parameter at its peak."""
    from peft import PeftModel  # here, because only a check of the merge needs peft

    base: Any = AutoModel.from_pretrained(found.checkpoint, dtype=torch.float64, local_files_only=True)
    model: Any = PeftModel.from_pretrained(base, str(found.adapter)).double().merge_and_unload()
    return {name: parameter.detach().to(dtype).contiguous() for name, parameter in model.named_parameters()}


def save(found: LocalWeights, device: torch.device, dtype: torch.dtype, to: Path) -> None:
    """The merged model as a complete checkpoint of the bare model, but for the tokenizer."""
    write(found, ((name, tensor.cpu().contiguous()) for name, tensor in merged(found, device, dtype)), dtype, to)


def write(found: LocalWeights, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, to: Path) -> None:
    """Shards of these tensors and an index, with the base's configuration."""
    to.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(held, to / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(held, name))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > MAX_SHARD_BYTES:
            flush()
            size = 0
        held[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (to / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    config: Any = AutoConfig.from_pretrained(found.checkpoint, local_files_only=True)
    config.architectures, config.dtype = ["MistralModel"], dtype
    config.use_cache = False  # as the published config has it; a cache would slow the others down
    config.save_pretrained(to)
