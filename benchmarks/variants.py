"""The engine with one feature switched off. No other benchmark module reaches into the engine's internals.

Each switch is a context manager; `missing` lists those without effect on this device, model or build.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from e5 import catalog
from e5.embedder import Embedder
from e5.network import attention, torch_ops
from e5.network.batches import PackedBatch
from e5.network.decoder import Decoder
from e5.network.encoder import Encoder
from e5.network.graphs import Graphs

FLOAT8 = "float8"


def has_float8(model: catalog.Model) -> bool:
    """Whether the engine computes the model's linear layers in float8."""
    return model.architecture == "mistral"


def graphs(embedder: Embedder) -> Graphs | None:
    """The engine's CUDA graphs, with the `seconds` and `bytes` that capture took; None if it has none."""
    return embedder.packed.graphs


def uses_kernels(embedder: Embedder) -> bool:
    """Whether Triton kernels compute what lies between the matrix products."""
    network = embedder.packed.network
    return isinstance(network, Decoder | Encoder) and network.ops is not torch_ops


def missing(embedder: Embedder) -> dict[str, str]:
    """Switch → why it has no effect."""
    reasons = {}
    if graphs(embedder) is None:
        reasons["graphs"] = "there are none"
    if not embedder.device.startswith("cuda"):
        reasons |= {"kernels": "they run on CUDA only", "attention": "it runs on CUDA only"}
        reasons |= {"synchronised": "a CPU does not work asynchronously", "products": "cuBLAS is for CUDA"}
    elif not uses_kernels(embedder):
        reasons["kernels"] = "they are off: see the log"
    if not has_float8(embedder.model):
        reasons[FLOAT8] = "it is for Mistral models"
    return reasons


@contextmanager
def unchanged(_: Embedder) -> Iterator[None]:
    """Nothing switched off."""
    yield


@contextmanager
def without_graphs(embedder: Embedder) -> Iterator[None]:
    """Each operator is launched from Python."""
    with patch.object(embedder.packed, "graphs", None):
        yield


@contextmanager
def without_kernels(embedder: Embedder) -> Iterator[None]:
    """torch's own operators between the matrix products. Graphs contain the kernels, so they are off, too."""
    with without_graphs(embedder), patch.object(embedder.packed.network, "ops", torch_ops):
        yield


@contextmanager
def dense_attention(embedder: Embedder) -> Iterator[None]:
    """Dense attention over runs of equally long texts, as without the variable-length kernel.

    cuDNN is off: torch 2.11 prefers it on Hopper, but it takes .4 s to plan each new shape (FunASR#3704), and the runs
    of 384 texts have some 500 shapes.
    """
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    without_kernel = patch.object(attention, "_has_kernel", lambda *_: False)
    with without_graphs(embedder), without_kernel, sdpa_kernel(backends):
        yield


@contextmanager
def synchronised(embedder: Embedder) -> Iterator[None]:
    """The host waits for each batch before it prepares the next."""
    embed = embedder.packed.embed

    def embed_and_wait(batch: PackedBatch) -> Tensor:
        vectors = embed(batch)
        torch.cuda.synchronize()
        return vectors

    with patch.object(embedder.packed, "embed", embed_and_wait):
        yield


@contextmanager
def budget(embedder: Embedder, tokens: int) -> Iterator[None]:
    """Another limit of tokens per pass."""
    with patch.object(embedder, "max_batch_tokens", tokens):
        yield


@contextmanager
def cublaslt(embedder: Embedder) -> Iterator[None]:
    """Matrix products by cuBLASLt, which selects kernels by other heuristics than cuBLAS."""
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        with _recaptured(embedder, "cublaslt"):
            yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


@contextmanager
def sums_in_float32(embedder: Embedder) -> Iterator[None]:
    """Partial sums of float16 products are reduced in float32; torch's default allows float16."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction
    flags.allow_fp16_reduced_precision_reduction = False
    try:
        with _recaptured(embedder, "float32"):
            yield
    finally:
        flags.allow_fp16_reduced_precision_reduction = before


_captured: dict[tuple[int, str], Graphs | None] = {}


@contextmanager
def _recaptured(embedder: Embedder, key: str) -> Iterator[None]:
    """Graphs of its own for the variant, captured once: the engine's graphs contain the default matmul kernels."""
    if embedder.packed.graphs is None:
        yield
        return
    cached = (id(embedder), key)
    with patch.object(embedder.packed, "graphs", None):
        if cached not in _captured:
            embedder.packed.capture_graphs()
            _captured[cached] = embedder.packed.graphs
        embedder.packed.graphs = _captured[cached]
        yield
