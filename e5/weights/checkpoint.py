"""Read a checkpoint folder (config.json and safetensors): its configuration and its tensors, one at a time.

Supports the layouts in which the family is published: one file, or shards with an index; tensor names of the bare
model, or of a model with a head (prefixed with `model.`, `bert.` or `roberta.`). Tensors come under the bare model's
names. Pickled checkpoints are not supported, on purpose.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from e5.catalog import CHECKPOINT
from e5.errors import WeightsError
from e5.weights import reading
from e5.weights.files import read_json, shard_names

PREFIXES = ("model.", "bert.", "roberta.")
HEADS = ("lm_head.", "cls.", "pooler.")
"""Parts of the model that embeddings do not use."""
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids", ".rotary_emb.inv_freq")
"""Constants that older transformers releases stored and newer ones compute."""


def bare_name(name: str) -> str:
    """Strip the prefix that a model with a head puts in front of the bare model's tensor names."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def is_weight(name: str) -> bool:
    """Whether the tensor (by bare name) is a weight of the bare model, not of a head and not a constant."""
    return not name.startswith(HEADS) and not name.endswith(BUFFERS)


def config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises WeightsError if it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise reading.unreadable(path, error) from error


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises WeightsError if there are none."""
    single, index = (folder / name for name in CHECKPOINT)
    if single.is_file():
        return [single]
    if not index.is_file():
        raise WeightsError(f"{folder} has neither {' nor '.join(CHECKPOINT)}: name the folder that holds the weights")
    return [folder / name for name in shard_names(index)]


def stored_weights(folder: Path) -> list[reading.StoredTensor]:
    """The weights in a checkpoint's files, by bare name, in the order of `tensors`. Reads only the headers."""
    headers = [stored for path in shards(folder) for stored in reading.read_header(path)]
    bare = [replace(stored, name=bare_name(stored.name)) for stored in headers]
    return [stored for stored in bare if is_weight(stored.name)]


def check_shapes(folder: Path, expected: Mapping[str, Sequence[int]]) -> None:
    """Raise WeightsError unless the checkpoint has exactly the expected weights. Reads only the headers."""
    missing = set(expected)
    for stored in stored_weights(folder):
        shape = expected.get(stored.name)
        if shape is None or tuple(shape) != stored.shape:
            wanted = "" if shape is None else f", which is {list(shape)} in the model"
            found = f"{stored.name:.100} {list(stored.shape)!s:.100}"
            raise WeightsError(f"{folder} has a tensor {found}{wanted}: not a checkpoint of its config")
        missing.discard(stored.name)
    if missing:
        raise WeightsError(f"{folder} lacks {min(missing)} ({len(missing)} missing): download it again")


def tensors(folder: Path, pin: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield (bare name, tensor on the host) for each weight, in file order. Tensors of heads are not read.

    A tensor is valid only until the next one is requested: copy it.

    `pin`: set it for a GPU. Files are then read ahead into pinned memory while earlier tensors are copied. Without it,
    tensors are views of memory-mapped files, which is faster on a CPU because it saves a copy
    (docs/performance-notes.md).
    """
    return _read_ahead(folder) if pin else _mapped(folder)


def _read_ahead(folder: Path) -> Iterator[tuple[str, Tensor]]:
    with closing(reading.read(stored_weights(folder), pin=True)) as stream:
        for stored, tensor in stream:
            yield stored.name, tensor


def _mapped(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in shards(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in map(str, file.offset_keys()):
                    if is_weight(bare_name(name)):
                        yield bare_name(name), file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise reading.unreadable(path, error) from error
