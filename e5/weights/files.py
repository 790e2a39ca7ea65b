"""Find a model's files in a folder and check that they are complete.

The check reads headers, never tensors: JSON must parse, and a safetensors file must be as long as its header says. Of
a large JSON file, a tokenizer, it reads both ends; the tokenizer's own library parses it later.
Checksums are compared only once, after a download (`e5.weights.transfer`).
"""

import json
import os
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5.catalog import ADAPTER_TENSORS, CHECKPOINT, Model
from e5.errors import WeightsError

LARGE_JSON = 1_000_000
"""Bytes. Python takes 0.4 s to parse XLM-R's tokenizer of 17 MB."""
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
GIT_LFS_POINTER = b"version "  # "version https://git-lfs…": in clones made without git-lfs, instead of a large file


@dataclass(frozen=True)
class LocalWeights:
    """Paths of one model's files on this machine.

    `checkpoint`: the folder with config.json and model.safetensors (or index and shards). It is the base if `source` is
    "adapter", the complete model if it is "merged". `tokenizer`: tokenizer.json. `adapter`: the folder with
    adapter_config.json and adapter_model.safetensors or .bin; None for "merged".
    """

    source: str
    checkpoint: Path
    tokenizer: Path
    adapter: Path | None


def in_folder(model: Model, folder: Path, source: str | None = None) -> LocalWeights:
    """The weights in a folder that has `base/` and `adapter/`, or one complete checkpoint.

    Raises WeightsError that lists every missing or broken file, or names a wrong architecture.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder: name the folder that holds the weights of {model.name}")
    if (source or _detect_source(model, folder)) == "adapter":
        base = folder / "base"
        weights = LocalWeights("adapter", base, base / "tokenizer.json", folder / "adapter")
    else:
        weights = LocalWeights("merged", folder, folder / "tokenizer.json", None)
    if problems := check(model, weights):
        raise WeightsError(f"{folder} cannot be used for {model.name}: {'; '.join(problems)}")
    return weights


def _detect_source(model: Model, folder: Path) -> str:
    sources = [name for name, _ in model.sources]
    if "adapter" in sources and (folder / "base").is_dir() and (folder / "adapter").is_dir():
        return "adapter"
    return "merged" if "merged" in sources and (folder / "config.json").is_file() else model.default_source


def check(model: Model, weights: LocalWeights) -> list[str]:
    """List the problems that keep these weights from being used, each with its path. Reads only headers."""
    config = weights.checkpoint / "config.json"
    if problem(config) is None and (model_type := read_json(config).get("model_type")) not in model.architectures:
        return [
            f"{config} has model_type {model_type!s:.100}, not {model.architecture}: set E5_MODEL to the model it "
            "holds, or declare a model of your own in e5.json (docs/models.md)"
        ]
    result = problems(weights.checkpoint, ("config.json",), CHECKPOINT)
    result += problems(weights.tokenizer.parent, (weights.tokenizer.name,))
    if weights.adapter is not None:
        result += problems(weights.adapter, ("adapter_config.json",), ADAPTER_TENSORS)
    return result


def problems(folder: Path, files: tuple[str, ...], one_of: tuple[str, ...] = ()) -> list[str]:
    """List the problems of `files`, of the first of `one_of` that exists, and of the shards that an index names."""
    names = [*files]
    if one_of:
        chosen = next((name for name in one_of if (folder / name).is_file()), None)
        if chosen is None:
            return [*problems(folder, files), f"{folder / one_of[0]} (or {', '.join(one_of[1:])}) is missing"]
        names.append(chosen)
    for index in [name for name in names if name.endswith(".index.json") and problem(folder / name) is None]:
        names += [shard for shard in shard_names(folder / index) if shard not in names]
    return [text for text in (problem(folder / name) for name in names) if text]


def problem(path: Path) -> str | None:
    """Describe the problem of one file: missing, truncated, or not the type that its name says. None if it is fine."""
    try:
        if not path.is_file():
            return f"{path} is missing"
        if path.suffix == ".bin":
            return None if zipfile.is_zipfile(path) else f"{path} is not a PyTorch file (no zip archive): replace it"
        if path.suffix == ".safetensors":
            return _safetensors_problem(path)
        if path.name.endswith(".index.json"):
            shard_names(path)
        elif path.stat().st_size > LARGE_JSON:
            _check_ends(path)
        else:
            read_json(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path} is broken ({error!s:.200}): replace it"
    return None


def _check_ends(path: Path) -> None:
    """Raise ValueError unless the file begins and ends like a JSON object, as a truncated one does not."""
    with path.open("rb") as file:
        start = file.read(1)
        file.seek(-16, os.SEEK_END)
        if start != b"{" or not file.read().rstrip().endswith(b"}"):
            raise ValueError("not a JSON object")


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that a checkpoint's index names, sorted. Raises ValueError if it is not a valid index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("no weight_map")
    # The index is untrusted: it may name safetensors files in its own folder, but no pickle and no ../../elsewhere.
    for name in weight_map.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise ValueError(f"its weight_map names {name!s:.100}, which is not a safetensors file in the same folder")
    return tuple(sorted(set(weight_map.values())))


def parse_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object that comes from outside. Raises ValueError for anything else, and for deep nesting."""
    try:
        parsed = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed


def read_json(path: Path) -> dict[str, Any]:
    """`parse_json` of a file. Raises OSError and ValueError."""
    return parse_json(path.read_bytes())


def _safetensors_problem(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == GIT_LFS_POINTER:
            return f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned"
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            return f"{path} is truncated or not a safetensors file ({size} bytes, fewer than its header): replace it"
        ends = _tensor_ends(parse_json(file.read(length)))
    expected = 8 + length + max(ends, default=0)
    if not ends or size != expected:
        return f"{path} is truncated or corrupt: expected {expected} bytes, it has {size}: replace it"
    return None


def _tensor_ends(header: dict[str, Any]) -> list[int]:
    """The offset at which each tensor of a safetensors header ends. The safetensors library checks the rest later."""
    ends = []
    for name, entry in header.items():
        if name != "__metadata__":
            match entry:
                case {"data_offsets": [int(), int() as end]}:
                    ends.append(end)
                case _:
                    raise ValueError(f"its header has no offsets for {name:.100}")
    return ends
