"""Tensors of safetensors files in the order of their bytes, read ahead of the consumer by several threads.

While the consumer copies one tensor to the device, the threads read the next ones: `os.preadv` into host memory,
outside Python's lock, large tensors in parts. All tensors share one ring of host memory, which bounds what is read
ahead; so a tensor is good until the next one is asked for, and no memory is allocated or pinned for each tensor.
"""

import json
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

PART_BYTES = 16 << 20
"""What one thread reads at a time; with 4 MiB a cold read took up to 1.5 × as long, 64 MiB gained nothing."""
WINDOW_BYTES = 512 << 20
"""Host memory for reading ahead: the flagship's embeddings twice, or four of its largest other matrices."""
THREADS = min(16, max(8, os.cpu_count() or 1))
"""A disk wants several requests at a time, whatever the number of cores: one thread had half of its bandwidth."""
ALIGNMENT = 64  # bytes: that of torch's own tensors

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
class Stored:
    """A tensor in a file: `size` bytes from the byte `begin` on."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


def stored(path: Path) -> list[Stored]:
    """The tensors of a safetensors file in the order of their bytes; reads the header alone. Raises WeightsError.

    The library checks the header (its length, the shapes, that the tensors fill the file without a gap), but does not
    say where the bytes lie: that is read from the header that it has approved.
    """
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        found = [
            Stored(path, name, one["dtype"], tuple(one["shape"]), 8 + length + begin, end - begin)
            for name, one in header.items()
            if name != "__metadata__"
            for begin, end in [one["data_offsets"]]
        ]
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return sorted(found, key=lambda one: one.begin)


def read(
    wanted: Sequence[Stored], *, pin: bool = False, window: int = WINDOW_BYTES
) -> Generator[tuple[Stored, Tensor], None, None]:
    """Each tensor in turn, on the host, good until the next one is asked for: copy it, and wait for the copy.

    `pin`: in memory that a GPU, where there is one, reads by itself at the full speed of its bus. `window`: bytes of
    host memory; a larger tensor gets what it needs. Raises WeightsError for a file that ends too soon, cannot be read
    or has a dtype that torch lacks. The threads end with the iterator, also when it is closed early.
    """
    for one in wanted:
        if one.dtype not in DTYPES:
            raise unreadable(one.path, f"{one.name} is of dtype {one.dtype}")
    with ExitStack() as stack:
        ring = _Ring(max([window, *(_aligned(one.size) for one in wanted)]))
        if pin and torch.cuda.is_available():
            ring.pin(stack)
        files = {path: _opened(path, stack) for path in dict.fromkeys(one.path for one in wanted)}
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="e5-reading")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)  # before the files and the memory go
        waiting, under_way = deque(wanted), deque[tuple[Stored, Tensor, list[Future[None]]]]()
        while waiting or under_way:
            while waiting and (place := ring.take(waiting[0].size)) is not None:
                one = waiting.popleft()
                parts = [
                    pool.submit(_fill, files[one.path], place[start : start + PART_BYTES], one.begin + start)
                    for start in range(0, one.size, PART_BYTES)
                ]
                under_way.append((one, place, parts))
            one, place, parts = under_way.popleft()
            try:
                for part in parts:
                    part.result()
            except OSError as error:
                raise unreadable(one.path, error) from error
            yield one, place.view(DTYPES[one.dtype]).view(one.shape)
            ring.give_back()


def unreadable(path: Path, why: object) -> WeightsError:
    return WeightsError(f"{path} cannot be read ({why}): delete it and fetch it again")


class _Ring:
    """One block of host memory, handed out in pieces and taken back in the same order."""

    def __init__(self, size: int) -> None:
        # Private pages straight from the kernel, huge ones where it has them: a 512th of the page faults, and as many
        # fewer pages to pin. Python frees the mapping when the last tensor that lies in it is gone.
        pages = mmap.mmap(-1, _aligned(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(pages, dtype=torch.uint8)
        self._taken: deque[tuple[int, int]] = deque()

    def pin(self, stack: ExitStack) -> None:
        """Pin it until the stack ends. Where that fails, copies to the GPU are slower and just as right.

        torch's own pinned memory would do, but rounds up to a power of two, and keeps it pinned ever after.
        """
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        start = self._memory.data_ptr()
        if status := int(runtime.cudaHostRegister(start, self._memory.numel(), 0)):
            log.warning("the memory for reading cannot be pinned (CUDA error %d): loading is slower", status)
            with suppress(RuntimeError):  # the error stays with the thread until a launch reports it: this one, then
                torch.zeros(1, device="cuda")
        else:
            stack.callback(runtime.cudaHostUnregister, start)

    def take(self, size: int) -> Tensor | None:
        """uint8 [size] of memory that nothing else has; None while there is no such piece."""
        room, needed = self._memory.numel(), _aligned(size)
        if not self._taken:
            start, end = 0, room
        else:
            head, tail = self._taken[0][0], self._taken[-1][1]
            wrapped = self._taken[-1][0] < head
            if not wrapped and room - tail < needed:  # the rest of the block is too small: on at its beginning
                wrapped, tail = True, 0
            start, end = tail, head if wrapped else room
        if end - start < needed:
            return None
        self._taken.append((start, start + needed))
        return self._memory[start : start + size]

    def give_back(self) -> None:
        """The oldest piece may be handed out again."""
        self._taken.popleft()


def _aligned(size: int) -> int:
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def _opened(path: Path, stack: ExitStack) -> int:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error) from error
    stack.callback(os.close, file)
    return file


def _fill(file: int, place: Tensor, begin: int) -> None:
    """Read len(place) bytes from the byte `begin` of the file on."""
    rest: memoryview = place.numpy().data
    while rest:
        count = os.preadv(file, [rest], begin)
        if count == 0:
            raise OSError(f"it ends at byte {begin}, {len(rest)} bytes too soon")
        rest, begin = rest[count:], begin + count
