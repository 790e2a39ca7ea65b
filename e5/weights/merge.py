"""Base and adapter → one merged checkpoint, as the adapter's authors publish theirs.

The parameters are exactly those that loading base and adapter in the same dtype gives. One tensor at a time is in
memory. The folder appears when it is complete: config.json, tokenizer.json and safetensors of at most 5 GB with bare
names.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from e5 import catalog
from e5.errors import SettingsError, WeightsError
from e5.weights import checkpoint, reading
from e5.weights.adapter import Adapter
from e5.weights.files import LocalWeights

MAX_SHARD_BYTES = 5_000_000_000
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
"""What safetensors calls the dtypes that a checkpoint may have."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Merge:
    """What is merged, and how it is stored."""

    files: LocalWeights
    dtype: torch.dtype
    device: torch.device
    max_shard_bytes: int = MAX_SHARD_BYTES

    def into(self, folder: Path) -> Path:
        """Write the checkpoint. Returns the folder, which must not exist or be empty; leaves nothing when it fails.

        Raises SettingsError for a target that is taken, WeightsError for files that do not belong together or a
        disk that is full.
        """
        folder = folder.expanduser().absolute()
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise SettingsError(f"--to {folder}: there is something already; name a folder that is empty or not there")
        shapes = _checked(self.files.checkpoint)
        needed = sum(map(math.prod, shapes.values())) * self.dtype.itemsize
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
            try:
                partial.chmod(0o755)
                self._write(shapes, partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # not there any more when all went well
        except OSError as error:
            why = f"{error.strerror or error}): it needs {needed / 1e9:.3g} GB"
            raise WeightsError(f"{folder} cannot be written ({why}; nothing was left there") from error
        return folder

    def _write(self, shapes: Shapes, folder: Path) -> None:
        config: Any = AutoConfig.from_pretrained(self.files.checkpoint, local_files_only=True)
        config.architectures, config.dtype = [type(_empty(config)).__name__], self.dtype
        config.use_cache = False  # as the published file has it: an embedding has no next token
        config.save_pretrained(folder)
        shutil.copyfile(self.files.tokenizer, folder / "tokenizer.json")
        shards = plan(shapes, self.dtype.itemsize, self.max_shard_bytes)
        merged = self._merged()
        for number, names in enumerate(shards, 1):
            with (folder / _file(number, len(shards))).open("wb") as file:
                _write_header(file, {name: shapes[name] for name in names}, self.dtype)
                for name in names:
                    found, tensor = next(merged)
                    assert found == name, f"{found} came where {name} was planned"
                    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())
        if (one_more := next(merged, None)) is not None:  # also: the checks after the last tensor
            raise AssertionError(f"{one_more[0]} was not planned")
        if len(shards) > 1:
            files = {name: _file(number, len(shards)) for number, names in enumerate(shards, 1) for name in names}
            total = sum(map(math.prod, shapes.values())) * self.dtype.itemsize
            index = {"metadata": {"total_size": total}, "weight_map": files}
            (folder / catalog.CHECKPOINT[1]).write_text(json.dumps(index, indent=2), "utf-8")

    def _merged(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of the result on the host, in the order of the base's files."""
        assert self.files.adapter is not None
        adapter = Adapter(self.files.adapter)
        for name, tensor in checkpoint.tensors(self.files.checkpoint, pin=self.device.type == "cuda"):
            arrived = tensor.to(self.device)
            merged = adapter.merged(name, arrived)
            stored = (arrived if merged is None else merged).to(self.dtype)
            if not torch.isfinite(stored).all():
                raise WeightsError(f"{name} has numbers beyond {self.dtype}, or none at all: pass --dtype bfloat16")
            yield name, stored.cpu().contiguous()
        adapter.check_all_used()


def plan(shapes: Shapes, itemsize: int, limit: int) -> list[list[str]]:
    """The tensors of each file, in order: at most `limit` bytes of them; a larger tensor goes alone."""
    files: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if not files or size > room:
            files.append([])
            room = limit
        files[-1].append(name)
        room -= size
    return files


def _checked(folder: Path) -> Shapes:
    """The shape of each weight, in the order in which `checkpoint.tensors` gives them; headers alone are read.

    Raises WeightsError when they are not all that the model of the folder's config has, and nothing else.
    """
    shapes = {
        checkpoint.bare_name(one.name): one.shape
        for path in checkpoint.shards(folder)
        for one in reading.stored(path)
        if checkpoint.is_weight(checkpoint.bare_name(one.name))
    }
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    want = {name: tuple(parameter.shape) for name, parameter in _empty(config).named_parameters()}
    if wrong := sorted(name for name in want.keys() | shapes.keys() if want.get(name) != shapes.get(name)):
        have, asked = shapes.get(wrong[0], "missing"), want.get(wrong[0], "no such tensor")
        raise WeightsError(
            f"{folder}: {wrong[0]} is {have}, its config asks for {asked} ({len(wrong)} such tensors): "
            "not a checkpoint of its config"
        )
    return shapes


def _empty(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        module: torch.nn.Module = AutoModel.from_config(config)
    return module


def _write_header(file: BinaryIO, shapes: Shapes, dtype: torch.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)


def _file(number: int, count: int) -> str:
    return catalog.CHECKPOINT[0] if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
