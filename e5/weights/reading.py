"""Read tensors from safetensors files in byte order, several threads ahead of the consumer.

While the consumer copies one tensor to the device, threads read the next ones into host memory with `os.preadv`, which
releases the GIL; large tensors are split into parts. All tensors share one ring buffer, which bounds the read-ahead and
avoids allocating and pinning memory per tensor. So a tensor is valid only until the next one is requested.
"""

import logging
import mmap
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from e5.errors import WeightsError
from e5.weights.files import parse_json

PART_BYTES = 16 << 20
"""Bytes per read call. With 4 MiB a cold read took up to 1.5 × as long; 64 MiB gained nothing."""
WINDOW_BYTES = 512 << 20
"""Read-ahead buffer: room for two of the flagship's embedding matrices, or four of its largest other matrices."""
THREADS = min(16, max(8, os.cpu_count() or 1))
"""A disk needs several requests in flight, however few the cores: one thread reached half the bandwidth."""
ALIGNMENT = 64  # bytes, like torch's own allocations

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `size` bytes at offset `begin`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


def read_header(path: Path) -> list[StoredTensor]:
    """List the tensors of a safetensors file in byte order. Reads only the header. Raises WeightsError.

    The safetensors library validates the header (length, shapes, no gaps between tensors) but does not expose byte
    offsets, so the validated header is parsed again here.
    """
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        tensors = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors.append(StoredTensor(path, name, entry["dtype"], shape, 8 + length + begin, end - begin))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return sorted(tensors, key=lambda tensor: tensor.begin)


def read(
    tensors: Sequence[StoredTensor], *, pin: bool = False, window: int = WINDOW_BYTES
) -> Generator[tuple[StoredTensor, Tensor], None, None]:
    """Yield each tensor on the host. It is valid until the next one is requested: copy it, and wait for the copy.

    `pin`: pin the memory if there is a GPU, so that copies run at full bus speed. `window`: bytes of host memory,
    enlarged if one tensor needs more. Raises WeightsError for a file that ends too soon or cannot be read, and for a
    dtype that torch lacks. The threads end with the iterator, even if it is closed early.
    """
    for stored in tensors:
        if stored.dtype not in DTYPES:
            raise unreadable(stored.path, f"{stored.name} is of dtype {stored.dtype}")
    with ExitStack() as stack:
        ring = _RingBuffer(max([window, *(_aligned(stored.size) for stored in tensors)]))
        if pin and torch.cuda.is_available():
            ring.pin(stack)
        files = {path: _open(path, stack) for path in dict.fromkeys(stored.path for stored in tensors)}
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="e5-reading")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)  # before files and memory are released
        waiting, in_flight = deque(tensors), deque[tuple[StoredTensor, Tensor, list[Future[None]]]]()
        while waiting or in_flight:
            while waiting and (buffer := ring.allocate(waiting[0].size)) is not None:
                stored = waiting.popleft()
                file = files[stored.path]
                parts = [
                    pool.submit(_read_into, file, buffer[start : start + PART_BYTES], stored.begin + start)
                    for start in range(0, stored.size, PART_BYTES)
                ]
                in_flight.append((stored, buffer, parts))
            stored, buffer, parts = in_flight.popleft()
            try:
                for part in parts:
                    part.result()
            except OSError as error:
                raise unreadable(stored.path, error) from error
            yield stored, buffer.view(DTYPES[stored.dtype]).view(stored.shape)
            ring.free_oldest()


def unreadable(path: Path, cause: object) -> WeightsError:
    """The error for a file that exists but cannot be used."""
    return WeightsError(f"{path} cannot be read ({cause!s:.300}): delete it and download it again")


class _RingBuffer:
    """One block of host memory. Pieces are freed in the order in which they were allocated."""

    def __init__(self, size: int) -> None:
        # Anonymous private pages, huge ones if the kernel has them: 512 times fewer page faults and pages to pin.
        # Python frees the mapping when its last tensor is gone.
        pages = mmap.mmap(-1, _aligned(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(pages, dtype=torch.uint8)
        self._allocated: deque[tuple[int, int]] = deque()

    def pin(self, stack: ExitStack) -> None:
        """Pin the memory until the stack closes. If that fails, copies to the GPU are slower but still correct.

        torch's own pinned allocator rounds up to a power of two and never unpins.
        """
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        start = self._memory.data_ptr()
        if status := int(runtime.cudaHostRegister(start, self._memory.numel(), 0)):
            log.warning("the read buffer cannot be pinned (CUDA error %d): loading will be slower", status)
            with suppress(RuntimeError):  # CUDA keeps the error for the thread's next launch: let this one report it
                torch.zeros(1, device="cuda")
        else:
            stack.callback(runtime.cudaHostUnregister, start)

    def allocate(self, size: int) -> Tensor | None:
        """Return unused memory as uint8 [size], or None if there is no free piece of that size."""
        capacity, needed = self._memory.numel(), _aligned(size)
        if not self._allocated:
            start, end = 0, capacity
        else:
            head, tail = self._allocated[0][0], self._allocated[-1][1]
            wrapped = self._allocated[-1][0] < head
            if not wrapped and capacity - tail < needed:  # too little room at the end: wrap around
                wrapped, tail = True, 0
            start, end = tail, head if wrapped else capacity
        if end - start < needed:
            return None
        self._allocated.append((start, start + needed))
        return self._memory[start : start + size]

    def free_oldest(self) -> None:
        """Free the piece that was allocated first."""
        self._allocated.popleft()


def _aligned(size: int) -> int:
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def _open(path: Path, stack: ExitStack) -> int:
    """Open a file for reading until the stack closes. Returns its descriptor."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error) from error
    stack.callback(os.close, file)
    return file


def _read_into(file: int, buffer: Tensor, offset: int) -> None:
    """Fill the uint8 buffer with the file's bytes from `offset` on."""
    remaining: memoryview = buffer.numpy().data
    while remaining:
        count = os.preadv(file, [remaining], offset)
        if count == 0:
            raise OSError(f"it ends at byte {offset}, {len(remaining)} bytes too soon")
        remaining, offset = remaining[count:], offset + count
