"""What a model's files are on this machine, and whether they are complete.

The structural check reads headers, never the tensors: JSON must parse, and a safetensors file must be as long as its
header says. Checksums are compared once, when a file arrives (`e5.weights.transfer`).
"""

import json
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5.catalog import ADAPTER_TENSORS, CHECKPOINT, Model
from e5.errors import WeightsError

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
GIT_LFS_POINTER = b"version "  # "version https://git-lfs…": what a clone without git-lfs has in a large file's place


@dataclass(frozen=True)
class LocalWeights:
    """Where the files of one model lie on this machine; all of them passed the structural check.

    `checkpoint` is the folder with config.json and model.safetensors, or its index and shards: the base when `source`
    is "adapter", the complete model when it is "merged". `tokenizer` is tokenizer.json itself. `adapter` is the folder
    with adapter_config.json and adapter_model.safetensors or .bin, None for "merged".
    """

    source: str
    checkpoint: Path
    tokenizer: Path
    adapter: Path | None


def in_folder(model: Model, folder: Path, source: str | None = None) -> LocalWeights:
    """The weights in a folder: `base/` and `adapter/`, or one complete checkpoint.

    Raises WeightsError that lists all that is missing, broken or of another architecture.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is not a folder: name the folder that holds the weights of {model.name}")
    if (source or _held(model, folder)) == "adapter":
        base = folder / "base"
        found = LocalWeights("adapter", base, base / "tokenizer.json", folder / "adapter")
    else:
        found = LocalWeights("merged", folder, folder / "tokenizer.json", None)
    if problems := check(model, found):
        raise WeightsError(f"{folder} cannot be used for {model.name}: {'; '.join(problems)}")
    return found


def _held(model: Model, folder: Path) -> str:
    has = [name for name, _ in model.sources]
    if "adapter" in has and (folder / "base").is_dir() and (folder / "adapter").is_dir():
        return "adapter"
    return "merged" if "merged" in has and (folder / "config.json").is_file() else model.default_source


def check(model: Model, weights: LocalWeights) -> list[str]:
    """What keeps these weights from being used, each with its path; empty when nothing does. Reads headers only."""
    config = weights.checkpoint / "config.json"
    if not problem(config) and (is_type := _json(config).get("model_type")) not in model.architectures:
        return [f"{config} is of model_type {is_type}, not {model.architecture}: set E5_MODEL to the model that it is"]
    found = problems(weights.checkpoint, ("config.json",), CHECKPOINT)
    found += problems(weights.tokenizer.parent, (weights.tokenizer.name,))
    if weights.adapter is not None:
        found += problems(weights.adapter, ("adapter_config.json",), ADAPTER_TENSORS)
    return found


def problems(folder: Path, files: tuple[str, ...], one_of: tuple[str, ...] = ()) -> list[str]:
    """The flaws of the `files`, of the first of `one_of` that exists, and of the shards that an index names."""
    names = [*files]
    if one_of:
        chosen = next((name for name in one_of if (folder / name).is_file()), None)
        if chosen is None:
            return [*problems(folder, files), f"{folder / one_of[0]} (or {', '.join(one_of[1:])}) is missing"]
        names.append(chosen)
    for name in [name for name in names if name.endswith(".index.json") and not problem(folder / name)]:
        names += [shard for shard in shard_names(folder / name) if shard not in names]
    return [found for name in names if (found := problem(folder / name))]


def problem(path: Path) -> str | None:
    """What is wrong with one file, None when nothing is: missing, cut short, not of the kind that its name says."""
    try:
        if not path.is_file():
            return f"{path} is missing"
        if path.suffix == ".bin":
            return None if zipfile.is_zipfile(path) else f"{path} is no PyTorch file (not a zip archive): replace it"
        if path.suffix == ".safetensors":
            return _safetensors_problem(path)
        shard_names(path) if path.name.endswith(".index.json") else _json(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path} is broken ({error}): replace it"
    return None


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that a checkpoint's index names, sorted. Raises ValueError when it is not such an index."""
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError("no weight_map")
    names = sorted({str(name) for name in named.values()})
    # an index is data of others: it may only name safetensors beside it, never a pickle, never ../../elsewhere
    if strange := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ValueError(f"its weight_map names {strange[0]}, which is no safetensors file beside it")
    return tuple(names)


def _safetensors_problem(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == GIT_LFS_POINTER:
            return f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned"
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, HEADER_LIMIT):
            return f"{path} is cut short or no safetensors file: {size} bytes, fewer than its header needs: replace it"
        ends = list(_ends(json.loads(file.read(length))))
    expected = 8 + length + max(ends, default=0)
    if not ends or size != expected:
        return f"{path} is cut short or broken: expected {expected} bytes, it has {size}: replace it"
    return None


def _ends(header: Any) -> Iterator[int]:
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    for name, tensor in header.items():
        if name != "__metadata__":
            try:
                yield int(tensor["data_offsets"][1])
            except (TypeError, KeyError, IndexError) as error:
                raise ValueError(f"its header has no offsets for {name}") from error


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content
