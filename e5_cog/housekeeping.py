"""Users' texts that Cog's server puts in files: nobody else can read them, and none stays behind.

coglet 0.23 creates two folders for each prediction in /tmp/coglet and never removes them: 12 kB and three inodes each.
It writes an input or an output of more than 6 MiB of JSON to a file there, which the other of its two processes removes
as soon as it has read it. If one of them is killed in between, the file stays. So does a download that breaks off, and
a file that a prediction returns.
"""

import asyncio
import logging
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from e5.serving.service import JOB

log = logging.getLogger(__name__)

COG_FOLDERS, FILES = Path("/tmp/coglet/predictions"), Path("/tmp/coglet/files")
"""Cog's folders of predictions; temporary files of this process."""
INTERVAL_SECONDS, MAX_AGE_SECONDS = 60, 900
"""Folders and files of this age are left over: they are read within seconds, and a running job touches its folder. The
age is what protects other servers of this user, which share the folders."""
OWN_NAMES = ("tmp", JOB)
"""Beginnings of names in FILES: of files that Cog downloads, and of folders of jobs."""


def keep_private() -> None:
    """Make files that this process writes from now on, and /tmp/coglet, accessible to this user only. Temporary files
    go there.

    The image's server has started with another umask; its files are protected by the folder.
    """
    os.umask(0o077)
    folder = COG_FOLDERS.parent
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.geteuid():
            raise PermissionError(f"it belongs to the user with the id {folder.lstat().st_uid}")
        folder.chmod(0o700)
        FILES.mkdir(exist_ok=True)
        tempfile.tempdir = str(FILES)
    except OSError as error:
        log.warning(
            "%s is not private (%s): other users may read large requests, or make them fail; remove it, or run the "
            "server in a container",
            folder,
            error,
        )


async def clean_periodically() -> None:
    """Remove leftovers now and once a minute, in a worker thread, until cancelled."""
    while True:
        with suppress(OSError):  # the folder is not ours, or has disappeared in the meantime
            await asyncio.to_thread(remove_leftovers, COG_FOLDERS, time.time() - MAX_AGE_SECONDS)
            await asyncio.to_thread(remove_files, FILES, time.time() - MAX_AGE_SECONDS)
        await asyncio.sleep(INTERVAL_SECONDS)


def remove_leftovers(parent: Path, before: float) -> int:
    """Remove folders in `parent` that are last modified before `before` (seconds since the epoch).

    They may contain folders, and these this user's files `spill_*` that are as old. A folder with another file or a
    younger one stays. Returns the number of folders removed.
    """
    if not parent.is_dir():
        return 0
    removed = 0
    for entry in os.scandir(parent):
        with suppress(OSError):  # it contains a file, belongs to another user, or has disappeared in the meantime
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                for inner in os.scandir(entry.path):
                    if inner.is_dir(follow_symlinks=False):
                        _remove_spills(Path(inner.path), before)
                    Path(inner.path).rmdir()
                Path(entry.path).rmdir()
                removed += 1
    return removed


def remove_files(parent: Path, before: float) -> int:
    """Remove this user's files and folders in `parent` that are last modified before `before`; returns their number."""
    removed = 0
    for entry in os.scandir(parent) if parent.is_dir() else ():
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if entry.name.startswith(OWN_NAMES) and status.st_uid == os.geteuid() and status.st_mtime < before:
                if entry.name.startswith(JOB):
                    shutil.rmtree(entry.path)
                else:
                    Path(entry.path).unlink()  # not a folder: it may be another library's
                removed += 1
    return removed


def _remove_spills(folder: Path, before: float) -> None:
    for file in folder.glob("spill_*"):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_mtime < before:
            file.unlink()
