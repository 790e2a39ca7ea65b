"""The engine with one thing switched off. The only module of the benchmark that knows where the switches are.

Each switch is a context manager; `missing` says why one cannot be used here. Where the engine has no such part, it
runs as if the part were off already.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from e5 import attention, settings
from e5.batches import PackedBatch
from e5.embedder import Embedder

FLOAT8 = "float8"


def has_float8() -> bool:
    return FLOAT8 in settings.DTYPES


def graphs(embedder: Embedder) -> Any:
    """The engine's CUDA graphs, with `seconds` and `bytes` of capturing them; None where it has none."""
    return getattr(embedder.packed, "graphs", None)


def missing(embedder: Embedder) -> dict[str, str]:
    """Switch → why it is none here."""
    found = {}
    if graphs(embedder) is None:
        found["graphs"] = "this engine has no CUDA graphs here"
    if not embedder.device.startswith("cuda"):
        found |= {"kernels": "they run on CUDA only", "attention": "it runs on CUDA only"}
        found["synchronised"] = "a CPU computes nothing beside"
    elif _elementwise() is None:
        found["kernels"] = "this engine has none"
    if not has_float8():
        found[FLOAT8] = "this engine has no float8"
    return found


@contextmanager
def as_it_is(_: Embedder) -> Iterator[None]:
    """Nothing switched off."""
    yield


@contextmanager
def without_graphs(embedder: Embedder) -> Iterator[None]:
    """Every operator launched by itself."""
    held = graphs(embedder)
    if held is None:
        yield
        return
    packed: Any = embedder.packed
    packed.graphs = None
    try:
        yield
    finally:
        packed.graphs = held


@contextmanager
def without_kernels(embedder: Embedder) -> Iterator[None]:
    """torch's own operators between the products. Graphs hold kernels, so they are off as well."""
    module = _elementwise()
    if module is None:
        yield
        return
    with without_graphs(embedder), patch.object(module, "use_kernels", False):
        yield


@contextmanager
def dense_attention(embedder: Embedder) -> Iterator[None]:
    """Attention over runs of equally long texts, as where there is no variable-length kernel."""
    with without_graphs(embedder), patch.object(attention, "_has_kernel", lambda *_: False):
        yield


@contextmanager
def synchronised(embedder: Embedder) -> Iterator[None]:
    """The host waits for each batch before it prepares the next."""
    embed = embedder.packed.embed

    def and_wait(batch: PackedBatch) -> Tensor:
        vectors = embed(batch)
        torch.cuda.synchronize()
        return vectors

    with patch.object(embedder.packed, "embed", and_wait):
        yield


@contextmanager
def budget(embedder: Embedder, tokens: int) -> Iterator[None]:
    """Another number of tokens at most in one pass."""
    with patch.object(embedder, "max_batch_tokens", tokens):
        yield


def _elementwise() -> ModuleType | None:
    try:
        return importlib.import_module("e5.elementwise")
    except ModuleNotFoundError:
        return None
