"""The process's memory: running out of it, and giving it back."""

import ctypes
import os
import platform
from contextlib import suppress

import torch

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What CPUs say; the driver, of pinned memory and of launches; and cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the device, or the host, has no memory left: beside their own exceptions in bare texts."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in NO_MEMORY)


def release_memory() -> None:
    """Return the GPU's cached, unused blocks to the driver, so that a smaller batch fits."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # the GPU reports an earlier error here as well; the next batch meets it, too
            torch.cuda.empty_cache()


def trim_memory() -> None:
    """Return the pages of freed blocks to the kernel; for servers that keep them (`keep_freed_memory`) for weeks.

    Batches of ever new sizes fragment the kept memory: it grew by 2 kB a prediction, without an end in sight at 30,000.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the kernel.

    Each operator's result is a fresh block of megabytes, and by default each is mapped and page-faulted anew: float32
    ran 15–40 % slower so. An allocator that the user chose or tuned is left alone, and so are other C libraries.
    """
    tuned = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in tuned):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes: what is larger is rare, and would fragment the rest
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, bytes
