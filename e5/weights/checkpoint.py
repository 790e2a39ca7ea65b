"""A folder with config.json and safetensors → its tensors, one at a time, under the names of the bare model.

Covers the layouts in which the family is published: one file, or shards with an index; keys of the bare model, or
of a model with a head (`model.`, `bert.`, `roberta.` in front). Does not cover pickled checkpoints, on purpose.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from e5.catalog import CHECKPOINT
from e5.errors import WeightsError
from e5.weights import reading
from e5.weights.files import shard_names

PREFIXES = ("model.", "bert.", "roberta.")
NOT_OURS = ("lm_head.", "cls.", "pooler.")
"""Heads: parts that an embedding does not use."""
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids", ".rotary_emb.inv_freq")
"""Constants that older releases of transformers stored and newer ones compute."""


def bare_name(name: str) -> str:
    """A tensor's name without the prefix of the model around the bare one."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def is_weight(name: str) -> bool:
    """Whether the tensor of that bare name belongs to the bare model."""
    return not name.startswith(NOT_OURS) and not name.endswith(BUFFERS)


def config(folder: Path) -> dict[str, Any]:
    """What the folder's config.json says. Raises WeightsError where it says nothing."""
    path = folder / "config.json"
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise reading.unreadable(path, error) from error
    if not isinstance(said, dict):
        raise reading.unreadable(path, "it is no JSON object")
    return said


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises WeightsError where there is none."""
    single, index = (folder / name for name in CHECKPOINT)
    if single.is_file():
        return [single]
    if not index.is_file():
        raise WeightsError(f"{folder} has neither {' nor '.join(CHECKPOINT)}: name the folder that holds the weights")
    return [folder / name for name in shard_names(index)]


def tensors(folder: Path, pin: bool = False) -> Iterator[tuple[str, Tensor]]:
    """(bare name, tensor) of each weight, on the host, in the order of the files' bytes.

    A tensor is good until the next one is asked for: copy it, do not keep it.

    `pin`: for a GPU. The files are read ahead, while the copies to it are under way, from memory that it reads by
    itself. For a CPU the tensors are views of the mapped files: there the mapping is the faster way, as it spares a
    copy (docs/performance-notes.md). Tensors that are no weights are not read.
    """
    yield from _read_ahead(folder) if pin else _mapped(folder)


def _read_ahead(folder: Path) -> Iterator[tuple[str, Tensor]]:
    stored = [one for path in shards(folder) for one in reading.stored(path) if is_weight(bare_name(one.name))]
    with closing(reading.read(stored, pin=True)) as found:
        for one, tensor in found:
            yield bare_name(one.name), tensor


def _mapped(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in shards(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in map(str, file.offset_keys()):
                    if is_weight(bare_name(name)):
                        yield bare_name(name), file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise reading.unreadable(path, error) from error
