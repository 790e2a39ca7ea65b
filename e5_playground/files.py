"""Files to download: each in a folder with a name that nobody can guess, all of them bounded in age and in size."""

import contextlib
import secrets
import shutil
import time
from pathlib import Path

KEEP_SECONDS = 900
MOST_BYTES = 1 << 30  # the largest answers have some 40 MB
FOLDER = "e5-playground"


def write(cache: Path, name: str, content: bytes) -> str:
    """Write one file below Gradio's cache, from which Gradio serves it; return its path."""
    root = cache / FOLDER
    sweep(root, time.time() - KEEP_SECONDS, MOST_BYTES - len(content))
    folder = root / secrets.token_hex(16)
    folder.mkdir(parents=True, mode=0o700)
    path = folder / name
    path.write_bytes(content)
    return str(path)


def sweep(root: Path, before: float, most: int) -> None:
    """Remove what is older than the moment `before`, then the oldest until the rest has at most `most` bytes."""
    found: list[tuple[float, int, Path]] = []
    for folder in root.glob("*"):
        with contextlib.suppress(OSError):  # another request may be sweeping, too
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in found)
    for moment, size, folder in sorted(found):
        if moment < before or total > most:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
