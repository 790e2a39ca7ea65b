"""The forward pass of a packed batch, and the transfer of its vectors to the host."""

from typing import Protocol

import torch
from torch import Tensor

from e5.network import attention, graphs
from e5.network.batches import COARSE_STEP, FINE_STEP, PackedBatch
from e5.network.device import use_device
from e5.network.linear import FLOAT8, Destination
from e5.vectors import Vectors

SPIN_TOKENS = 2000
"""Up to this batch size the host spins until the GPU is done. Above, it sleeps: waking up takes 20 to 50 µs, and a
core that spins for the 40 ms or more of such a batch of the flagship is lost to the tokenizer and the server."""


class Network(Protocol):
    """A transformer that embeds packed batches: the `Decoder`, the `Encoder` or the `StockModel` of `e5.network`.

    `capturable`: whether CUDA graphs can replay its passes. `max_positions`: the longest text, in tokens.
    `padding_idx`: XLM-R's padding token, whose positions begin at padding_idx + 1; None if they begin at 0.
    """

    capturable: bool
    device: torch.device
    dtype: torch.dtype
    dimensions: int
    max_positions: int
    padding_idx: int | None

    def destinations(self) -> dict[str, Destination]: ...

    def prepack(self) -> bool:
        """Prepare the weights, which are filled by now, for fast products. Returns whether they are `prepacked`.

        `destinations` cannot be called afterwards.
        """

    def embed(self, batch: PackedBatch) -> Tensor:
        """N texts on the device → their pooled vectors [N, D], in `dtype` or float32, not normalized."""


class PackedModel:
    """A network on its device, with CUDA graphs for small batches once `capture_graphs` has captured them.

    `dtype`: the name, as in E5_DTYPE. `bucket_step`: on a CPU, batches are padded to a `batches.bucket_size`.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        self.network = network
        self.device = network.device
        self.dtype = "float8" if dtype == FLOAT8 else str(dtype).removeprefix("torch.")
        self.padding_idx = network.padding_idx
        self.dimensions, self.max_positions = network.dimensions, network.max_positions
        self.weights_bytes = sum(destination.nbytes for destination in network.destinations().values())
        prepacked = network.prepack()
        self.bucket_step = None if self.device.type != "cpu" else FINE_STEP if prepacked else COARSE_STEP
        self.graphs: graphs.Graphs | None = None

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> Tensor:
        """N texts → float32 [N, D] on the device, not normalized."""
        with use_device(self.device):
            vectors = self.graphs.embed(batch) if self.graphs is not None else None
            return self.network.embed(batch.to(self.device)).float() if vectors is None else vectors

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture CUDA graphs where the device has the variable-length kernel; elsewhere do nothing.

        A graph needs that kernel, which reads the texts' lengths from device memory.
        """
        if self.network.capturable and attention.has_kernel(self.device, self.network.dtype):
            self.graphs = graphs.try_capture(self.network.embed, self.device)


class PendingResult:
    """Vectors being copied from the device to the host. Create it right after the batch is launched.

    A GPU works in order: a copy that is requested after the next batch waits for that batch.
    """

    def __init__(self, result: Tensor, tokens: int) -> None:
        """Start copying `result`, the vectors of a batch of so many tokens."""
        self._host, self._copied = result, None
        if result.is_cuda:
            with use_device(result.device):  # pinning creates a context on the current device, 500 MB on each
                self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                self._host.copy_(result, non_blocking=True)
                self._copied = torch.cuda.Event(blocking=tokens > SPIN_TOKENS)  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(result.device))

    def vectors(self) -> Vectors:
        """Wait for the copy → float32 [N, D]. Raises the device's error if the batch failed."""
        if self._copied is not None:
            self._copied.synchronize()
        vectors: Vectors = self._host.numpy()
        return vectors
