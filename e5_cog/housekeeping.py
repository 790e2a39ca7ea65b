"""Empty folders that a server leaves behind are removed after a while."""

import os
from contextlib import suppress
from pathlib import Path


def sweep(folder: Path, before: float) -> int:
    """Remove what is in `folder` of folders without files that were made before `before` (seconds since the epoch).

    Files are never removed, nor what holds one. Returns how many folders went.
    """
    if not folder.is_dir():
        return 0
    removed = 0
    for entry in os.scandir(folder):
        with suppress(OSError):  # it holds a file, is somebody else's, or has gone meanwhile
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                for inner in os.scandir(entry.path):
                    Path(inner.path).rmdir()
                Path(entry.path).rmdir()
                removed += 1
    return removed
