"""CUDA graphs for small batches: one graph per token count replays a whole forward pass as a single launch.

For a few hundred tokens, launching a pass's 300 kernels from Python takes longer than computing them. A graph replays
captured launches on fixed buffers. A batch is copied into the buffers of the smallest graph that holds it; filler
tokens that belong to no text follow. Up to about 180 tokens, reading the weights dominates, so filler is free. Above
that the time grows with the tokens, and a graph has at most 31 of filler.

Graphs are an optimization: if capture fails, the model logs a warning and runs without them.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from e5.network.batches import PackedBatch, Run

log = logging.getLogger(__name__)

CAPTURE_SIZES = tuple(range(32, 513, 32))
"""In tokens. Above 512, launching is faster than computing: about 4 ms against 12 for the flagship on an H200."""
TOKENS_PER_TEXT = 16
"""A graph of T tokens holds T / 16 texts. A batch of more, shorter texts takes a larger graph."""

Embed = Callable[[PackedBatch], Tensor]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Captures a computation → its output buffer, and a function that recomputes it in place."""


@dataclass(frozen=True)
class _Graph:
    """A captured pass. `inputs`, int32, holds the batch's token ids, position ids and cumulative lengths."""

    tokens: int
    texts: int
    inputs: Tensor
    output: Tensor
    replay: Replay


class Graphs:
    """A model's captured passes. `seconds` and `bytes`: the time and device memory that capture took."""

    def __init__(
        self, embed: Embed, device: torch.device, capture: Capture, sizes: tuple[int, ...] = CAPTURE_SIZES
    ) -> None:
        """`embed` maps a batch on the device to one vector per text."""
        started, free = time.perf_counter(), _free_bytes(device)
        # Largest first: the smaller graphs then reuse its memory, since no two of them run at a time.
        self._graphs = [_capture_size(embed, device, capture, tokens) for tokens in sorted(sizes, reverse=True)][::-1]
        self.seconds = time.perf_counter() - started
        self.bytes = free - _free_bytes(device)

    def embed(self, batch: PackedBatch) -> Tensor | None:
        """N texts on the host → float32 [N, D] on the device; None if no graph is large enough."""
        tokens, texts = batch.tokens, len(batch.cu_seqlens) - 1
        graph = next((graph for graph in self._graphs if graph.tokens >= tokens and graph.texts >= texts), None)
        if graph is None:
            return None
        on_gpu = graph.inputs.is_cuda
        host = torch.empty(graph.inputs.shape, dtype=torch.int32, pin_memory=on_gpu)
        input_ids, position_ids, cu_seqlens = _views(host, graph.tokens)
        input_ids[:tokens], input_ids[tokens:] = batch.input_ids[:tokens], 0
        position_ids[:tokens], position_ids[tokens:] = batch.position_ids[:tokens], 0
        # The unused texts are empty: they end where the last text does, so filler belongs to no text.
        cu_seqlens[: texts + 1], cu_seqlens[texts + 1 :] = batch.cu_seqlens, tokens
        graph.inputs.copy_(host, non_blocking=on_gpu)
        graph.replay()
        # A copy: the next batch of this size overwrites the output buffer.
        return graph.output[:texts].to(torch.float32, copy=True)


def _capture_size(embed: Embed, device: torch.device, capture: Capture, tokens: int) -> _Graph:
    texts = max(2, tokens // TOKENS_PER_TEXT)
    inputs = torch.zeros(2 * tokens + texts + 1, dtype=torch.int32, device=device)
    input_ids, position_ids, cu_seqlens = _views(inputs, tokens)
    cu_seqlens[1:] = tokens  # one text of all tokens, so that capture computes something real
    batch = PackedBatch(input_ids, position_ids, cu_seqlens, runs=(Run(0, 1, tokens),), max_seqlen=tokens)
    output, replay = capture(lambda: embed(batch))
    return _Graph(tokens, texts, inputs, output, replay)


def _views(inputs: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [T], position ids [T] and cumulative lengths [N + 1]: one tensor, so that one copy fills all three."""
    return inputs[:tokens], inputs[tokens : 2 * tokens], inputs[2 * tokens :]


def try_capture(embed: Embed, device: torch.device) -> Graphs | None:
    """Capture a model's graphs on CUDA; None, with a warning in the log, if that fails."""
    try:
        return Graphs(embed, device, _CudaCapture(device))
    except Exception as error:  # from torch or Triton; no such error may keep the model from starting
        log.warning("small batches run without CUDA graphs: capturing them failed (%s)", error)
    torch.cuda.empty_cache()  # only now: until here the exception kept the captured graphs alive
    return None


class _CudaCapture:
    """Captures the kernels that a computation launches. All graphs share one memory pool and one stream.

    One stream, because cuBLAS keeps a workspace of 32 MB for each stream that it has run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        # Warm up outside of capture: libraries initialize on their first call, which must not be captured.
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            compute()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads, the server's for one, may allocate during capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = compute()
        except BaseException:
            torch.cuda.set_stream(current)  # after a failed capture, torch 2.11 leaves the capture stream current
            self._end_allocation()
            raise
        return output, graph.replay

    def _end_allocation(self) -> None:
        """Tell torch's allocator that a failed capture has ended.

        Up to torch 2.11, `CUDAGraph.capture_end` raises before it does so (pytorch#180395). The allocator would stay in
        capture mode for good: `empty_cache` would do nothing (pytorch#158152), and a failed allocation would not be
        retried after freeing cached blocks.
        """
        device = self._stream.device_index
        with suppress(RuntimeError):  # already ended: the failure came before or after the capture itself
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)  # the reference that the failed graph held


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
