"""The forward pass of one packed batch, and its vectors' way to the host."""

from typing import Protocol

import torch
from torch import Tensor

from e5 import catalog
from e5.network import attention, graphs, pooling
from e5.network.batches import PackedBatch
from e5.network.device import current
from e5.network.linear import FLOAT8, Destination
from e5.vectors import Vectors

SPIN_TOKENS = 2000
"""Up to this batch size the host spins until the GPU is done. Above, it sleeps: waking up takes 20 to 50 µs, and a
core that spins for the 40 ms or more of such a batch of the flagship is lost to the tokenizer and the server."""


class Network(Protocol):
    """A transformer without a head: `e5.network.decoder.Decoder` or `e5.network.encoder.Encoder`.

    `forward` gives a row for each token, or for each text where `pools_last_token` says so; rows of filler may follow.
    `position_padding`: XLM-R's padding token, after which its positions begin; None where positions begin at 0.
    """

    pools_last_token: bool
    device: torch.device
    dtype: torch.dtype
    dimensions: int
    max_positions: int
    position_padding: int | None

    def destinations(self) -> dict[str, Destination]: ...

    def forward(self, batch: PackedBatch) -> Tensor: ...


class PackedModel:
    """A network that maps packed batches to one pooled vector a text.

    `dtype`: as in E5_DTYPE. `graphs`: recorded passes for small batches, on CUDA; without them everything is launched
    anew.
    """

    def __init__(self, network: Network, kind: catalog.Pooling, dtype: torch.dtype) -> None:
        self.network = network
        self.pooling = kind
        self.device = network.device
        self.dtype = "float8" if dtype == FLOAT8 else str(dtype).removeprefix("torch.")
        self.padding_id = network.position_padding
        self.dimensions, self.max_positions = network.dimensions, network.max_positions
        # Where each new shape costs time and memory (`batches.rounded`), batches should have few of them.
        self.bucketed = self.device.type == "cpu"
        self.weights_bytes = sum(destination.nbytes for destination in network.destinations().values())
        self.graphs: graphs.Graphs | None = None

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> Tensor:
        """N texts → float32 [N, D] on the device, not normalised."""
        with current(self.device):
            if self.graphs is not None:
                vectors = self.graphs.run(batch)
                if vectors is not None:
                    return vectors
            batch = batch.to(self.device)
            hidden = self.network.forward(batch)
            if self.network.pools_last_token:
                return hidden[: len(batch.cu_seqlens) - 1].float()
            return pooling.pool(self.pooling, hidden[: batch.tokens], batch.cu_seqlens)

    @torch.inference_mode()
    def record_graphs(self) -> None:
        """Record passes for small batches, where the attention is that of the variable-length kernel: it takes the
        texts' lengths from the device. Elsewhere nothing is done."""
        if self.network.pools_last_token and attention.has_kernel(self.device, self.network.dtype):
            self.graphs = graphs.record(self.network.forward, self.device)


class PendingResult:
    """Vectors on their way from the device to the host; made as soon as they are asked for, before other work is.

    A copy that is asked for later waits on a GPU for all the work that was asked for before it: the next batch's.
    """

    def __init__(self, result: Tensor, tokens: int) -> None:
        """`tokens`: how many the batch of `result` has."""
        self._host, self._copied = result, None
        if result.is_cuda:
            with current(result.device):  # pinning memory creates a context on the current device, 500 MB of its own
                self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                self._host.copy_(result, non_blocking=True)
                self._copied = torch.cuda.Event(blocking=tokens > SPIN_TOKENS)  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(result.device))

    def vectors(self) -> Vectors:
        """float32 [N, D], once they are there. Raises what went wrong on the device."""
        if self._copied is not None:
            self._copied.synchronize()
        arrived: Vectors = self._host.numpy()
        return arrived
