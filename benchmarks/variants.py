"""The engine with one thing switched off. The only module of the benchmark that knows where the switches are.

Each switch is a context manager; `missing` says why one changes nothing here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from e5 import catalog
from e5.embedder import Embedder
from e5.network import attention, fused_ops
from e5.network.batches import PackedBatch
from e5.network.graphs import Graphs

FLOAT8 = "float8"


def has_float8(model: catalog.Model) -> bool:
    """Whether the engine computes the model's linear layers in float8."""
    return model.architecture == "mistral"


def graphs(embedder: Embedder) -> Graphs | None:
    """The engine's CUDA graphs, with `seconds` and `bytes` of capturing them; None where it has none."""
    return embedder.packed.graphs


def missing(embedder: Embedder) -> dict[str, str]:
    """Switch → why it is none here."""
    found = {}
    if graphs(embedder) is None:
        found["graphs"] = "there are none"
    if not embedder.device.startswith("cuda"):
        found |= {"kernels": "they run on CUDA only", "attention": "it runs on CUDA only"}
        found |= {"synchronised": "a CPU computes nothing beside", "products": "cuBLAS is for CUDA"}
    elif not fused_ops.use_kernels:
        found["kernels"] = "they could not be compiled: the log says why"
    if not has_float8(embedder.model):
        found[FLOAT8] = "it is for Mistral models"
    return found


@contextmanager
def as_it_is(_: Embedder) -> Iterator[None]:
    """Nothing switched off."""
    yield


@contextmanager
def without_graphs(embedder: Embedder) -> Iterator[None]:
    """Every operator launched by itself."""
    with patch.object(embedder.packed, "graphs", None):
        yield


@contextmanager
def without_kernels(embedder: Embedder) -> Iterator[None]:
    """torch's own operators between the products. Graphs hold kernels, so they are off as well."""
    with without_graphs(embedder), patch.object(fused_ops, "use_kernels", False):
        yield


@contextmanager
def dense_attention(embedder: Embedder) -> Iterator[None]:
    """Attention over runs of equally long texts, as where there is no variable-length kernel.

    Without cuDNN, which torch 2.11 prefers on Hopper: it builds a plan for each new shape, .4 s each (FunASR#3704), and
    the runs of 384 texts have some 500 shapes.
    """
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    without_kernel = patch.object(attention, "_has_kernel", lambda *_: False)
    with without_graphs(embedder), without_kernel, sdpa_kernel(backends):
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


@contextmanager
def cublaslt(embedder: Embedder) -> Iterator[None]:
    """Products by cuBLASLt, which chooses its kernels by other rules than cuBLAS."""
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        with _recorded_anew(embedder, "cublaslt"):
            yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


@contextmanager
def sums_in_float32(embedder: Embedder) -> Iterator[None]:
    """Parts of a float16 product are added up in float32, which torch does not insist on by itself."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction
    flags.allow_fp16_reduced_precision_reduction = False
    try:
        with _recorded_anew(embedder, "float32"):
            yield
    finally:
        flags.allow_fp16_reduced_precision_reduction = before


_recorded: dict[tuple[int, str], Graphs | None] = {}


@contextmanager
def _recorded_anew(embedder: Embedder, key: str) -> Iterator[None]:
    """With graphs of their own: the engine's have recorded which kernel multiplies. Made once."""
    if embedder.packed.graphs is None:
        yield
        return
    known = (id(embedder), key)
    with patch.object(embedder.packed, "graphs", None):
        if known not in _recorded:
            embedder.packed.record_graphs()
            _recorded[known] = embedder.packed.graphs
        embedder.packed.graphs = _recorded[known]
        yield
