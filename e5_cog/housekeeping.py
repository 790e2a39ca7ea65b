"""Removal of the empty folders that Cog's server leaves behind.

coglet 0.23 creates two folders for each prediction and never removes them: 12 kB and three inodes each.
"""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

COG_FOLDERS = Path("/tmp/coglet/predictions")
INTERVAL_SECONDS, MAX_AGE_SECONDS = 60, 900  # no prediction takes that long


async def clean_periodically() -> None:
    """Remove old empty folders now and once a minute, in a worker thread, until cancelled."""
    while True:
        with suppress(OSError):  # the folder is not ours, or has disappeared in the meantime
            await asyncio.to_thread(remove_empty_folders, COG_FOLDERS, time.time() - MAX_AGE_SECONDS)
        await asyncio.sleep(INTERVAL_SECONDS)


def remove_empty_folders(parent: Path, before: float) -> int:
    """Remove folders in `parent` that are last modified before `before` (seconds since the epoch), along with empty
    folders inside.

    Never removes a file, or a folder that contains one. Returns the number of folders removed.
    """
    if not parent.is_dir():
        return 0
    removed = 0
    for entry in os.scandir(parent):
        with suppress(OSError):  # it contains a file, belongs to another user, or has disappeared in the meantime
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                for inner in os.scandir(entry.path):
                    Path(inner.path).rmdir()
                Path(entry.path).rmdir()
                removed += 1
    return removed
