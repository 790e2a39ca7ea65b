"""The process's memory: detect that it ran out, and release it."""

import ctypes
import os
import platform
from contextlib import suppress

import torch

OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""RuntimeErrors of torch's CPU allocator; of the driver, for pinned memory and launches; and of cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the device or the host is out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def release_memory() -> None:
    """Return the GPU's cached, unused blocks to the driver, so that a smaller batch fits."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # an earlier GPU error can surface here; the next batch reports it, too
            torch.cuda.empty_cache()


def trim_memory() -> None:
    """Return freed memory to the kernel, for long-running servers that use `keep_freed_memory`.

    Batches of varying sizes fragment the kept memory: it grew by 2 kB a prediction, and still did after 30,000.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks instead of returning them to the kernel.

    Each operator allocates megabytes for its result. By default glibc maps and page-faults every such block: float32
    ran 15–40 % slower. Does nothing if the user chose or tuned an allocator, or without glibc.
    """
    tuned = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in tuned):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes: larger blocks are rare and would fragment the heap
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, bytes
