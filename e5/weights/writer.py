"""Write a safetensors checkpoint: one file, or shards with an index.

At most one tensor is in memory. The safetensors library's `save_file` needs all tensors of a file at once.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e5.catalog import CHECKPOINT

MAX_SHARD_BYTES = 5_000_000_000
"""The limit of the published checkpoints."""
DTYPE_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

Shapes = Mapping[str, Sequence[int]]


def write_config(folder: Path, config: Any, architecture: str, dtype: torch.dtype) -> None:
    """Write config.json from a transformers config. `architecture`: the model class, e.g. "MistralModel"."""
    config.architectures, config.dtype = [architecture], dtype
    config.use_cache = False  # as in the published file: embedding generates no next token
    config.save_pretrained(folder)


def write_tensors(
    folder: Path,
    shapes: Shapes,
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write (name, tensor) pairs, which must come in the order of `shapes`, converted to `dtype`.

    An interrupted write leaves no index, or a model.safetensors that is shorter than its header says. Raises
    AssertionError if the tensors are not those of `shapes`.
    """
    for name in CHECKPOINT:
        (folder / name).unlink(missing_ok=True)  # an older model.safetensors would hide a new index
    shards = plan_shards(shapes, dtype.itemsize, max_shard_bytes)
    remaining = iter(tensors)
    for file_name, names in shards.items():
        with (folder / file_name).open("wb") as file:
            file.write(_header({name: shapes[name] for name in names}, dtype))
            for expected in names:
                name, tensor = next(remaining)
                assert (name, tensor.shape) == (expected, torch.Size(shapes[expected])), f"{name}, not {expected}"
                file.write(tensor.to("cpu", dtype).reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
    for name, _ in remaining:  # also runs the checks that follow the last tensor
        raise AssertionError(f"{name} is not in the plan")
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total_bytes(shapes, dtype)}, "weight_map": weight_map}
        (folder / CHECKPOINT[1]).write_text(json.dumps(index, indent=2), "utf-8")


def plan_shards(shapes: Shapes, itemsize: int, max_bytes: int) -> dict[str, list[str]]:
    """Assign tensors to files, in order: {file name: tensor names}. A tensor beyond `max_bytes` has its own file."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if not shards or size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {CHECKPOINT[0]: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, 1)}


def total_bytes(shapes: Shapes, dtype: torch.dtype) -> int:
    """Bytes of all tensors together."""
    return sum(map(math.prod, shapes.values())) * dtype.itemsize


def _header(shapes: Shapes, dtype: torch.dtype) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    return len(text).to_bytes(8, "little") + text
