"""CUDA graphs for small batches: the whole forward pass as one launch, for a ladder of token counts.

A pass over a few hundred tokens takes the GPU less time than Python takes to launch its 300 kernels. A graph is the
recorded launches, on buffers that stay where they are: a batch is copied into the smallest one that holds it, with
filler after its texts, which belongs to none of them. Up to some 180 tokens the time is that of reading the weights,
so filler costs nothing; above, with the tokens, of which a step has 31 more at most.

Recording is an optimisation: where it fails, it says so in the log and everything runs as without.
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

LADDER = tuple(range(32, 513, 32))
"""Tokens. Above, launching takes less time than computing: some 4 ms against 12 for the flagship on an H200."""
TOKENS_A_TEXT = 16
"""A step has room for a text in every so many tokens; a batch of more and shorter texts takes a larger step."""

Forward = Callable[[PackedBatch], Tensor]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Runs a computation; gives where its result lies, and what computes it there anew."""


@dataclass(frozen=True)
class _Step:
    """A recorded pass: `integers` holds the token ids, the positions and the cumulative lengths of `batch`."""

    tokens: int
    texts: int
    integers: Tensor
    output: Tensor
    replay: Replay


class Graphs:
    """Recorded forward passes of one model. `seconds` and `bytes` (of device memory): what recording took."""

    def __init__(
        self, forward: Forward, device: torch.device, capture: Capture, ladder: tuple[int, ...] = LADDER
    ) -> None:
        """`forward` maps a batch on the device to at least a row for each text."""
        started, free = time.perf_counter(), _free_bytes(device)
        # The largest first: the smaller ones then lie in its memory, since no two run at a time.
        self._steps = [_record(forward, device, capture, tokens) for tokens in sorted(ladder, reverse=True)][::-1]
        self.seconds = time.perf_counter() - started
        self.bytes = free - _free_bytes(device)

    def run(self, batch: PackedBatch) -> Tensor | None:
        """N texts → float32 [N, D] on the device; None for a batch that no step holds."""
        tokens, texts = batch.tokens, len(batch.cu_seqlens) - 1
        step = next((one for one in self._steps if one.tokens >= tokens and one.texts >= texts), None)
        if step is None:
            return None
        on_gpu = step.integers.is_cuda
        host = torch.empty(step.integers.shape, dtype=torch.int32, pin_memory=on_gpu)
        ids, positions, ends = _views(host, step.tokens)
        ids[:tokens], ids[tokens:] = batch.input_ids[:tokens], 0
        positions[:tokens], positions[tokens:] = batch.position_ids[:tokens], 0
        # Texts that are not there end where the last one does: they have no tokens, and the filler has no text.
        ends[: texts + 1], ends[texts + 1 :] = batch.cu_seqlens, tokens
        step.integers.copy_(host, non_blocking=on_gpu)
        step.replay()
        # A copy: the next batch of this size is computed into the same place.
        return step.output[:texts].to(torch.float32, copy=True)


def _record(forward: Forward, device: torch.device, capture: Capture, tokens: int) -> _Step:
    texts = max(2, tokens // TOKENS_A_TEXT)
    integers = torch.zeros(2 * tokens + texts + 1, dtype=torch.int32, device=device)
    ids, positions, ends = _views(integers, tokens)
    ends[1:] = tokens  # one text of all tokens, so that recording computes something real
    batch = PackedBatch(ids, positions, ends, runs=(Run(0, 1, tokens),), max_seqlen=tokens)
    output, replay = capture(lambda: forward(batch))
    return _Step(tokens, texts, integers, output, replay)


def _views(integers: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [T], positions [T] and cumulative lengths [N + 1], which one copy fills."""
    return integers[:tokens], integers[tokens : 2 * tokens], integers[2 * tokens :]


def record(forward: Forward, device: torch.device) -> Graphs | None:
    """Graphs of a model on CUDA; None, with a warning, where they cannot be made."""
    try:
        return Graphs(forward, device, _CudaCapture(device))
    except Exception as error:  # of torch and of Triton: whatever it is, it must not keep the model from starting
        log.warning("small batches run without CUDA graphs, which could not be recorded (%s)", error)
    torch.cuda.empty_cache()  # not before: the exception held what had been recorded
    return None


class _CudaCapture:
    """Records what a computation launches. All recordings share one pool of memory, and one stream.

    cuBLAS keeps a workspace of 32 MB for each stream that it has ever run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        # Once unrecorded: libraries set themselves up at their first call, which may not be recorded.
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            compute()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may allocate meanwhile, the server's for one.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = compute()
        except BaseException:
            torch.cuda.set_stream(current)  # where a recording fails, torch 2.11 leaves its own the current one
            self._end_allocation()
            raise
        return output, graph.replay

    def _end_allocation(self) -> None:
        """Tell torch's allocator that a failed recording is over.

        Up to torch 2.11 `CUDAGraph.capture_end` checks for the failure before it does this (pytorch#180395). The
        allocator would believe in a recording for ever: `empty_cache` would do nothing (pytorch#158152), and an
        allocation that fails would not be tried again after cached blocks are freed.
        """
        device = self._stream.device_index
        with suppress(RuntimeError):  # it is over already: the failure came before or after the recording itself
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)  # the reference that the failed graph held


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
