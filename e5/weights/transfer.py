"""One file, hub → disk: transfer, resume, retries, checksum. e5.weights.fetch decides where files go.

Bytes move by hf_hub_download where the hub offers its chunked storage (Xet), which is faster than one connection.
Everything else, and a file whose fast transfer was cut, moves by `_resume`. Measured with a 30 MB file: huggingface_hub
1.31 and 2.4 go on after a closed connection, but a reset one at 25 MB ends the transfer and deletes what has arrived,
and after a kill the file starts anew beside an orphan (1.5 went on). One file of the flagship has 9.9 GB.
"""

import hashlib
import importlib.util
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # lazy exports
from tqdm import tqdm

from e5.errors import WeightsError
from e5.weights.files import problem

WAITS = (1, 2, 4, 8)
"""Seconds before each new try; whenever bytes have arrived in between, the row starts anew."""
PASSING = (408, 429, 500, 502, 503, 504)
"""What huggingface_hub itself retries, though only for the HEAD request of a file: no listing, no GET."""
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The HTTP client's errors: httpx.HTTPError in huggingface_hub 1, httpx2.HTTPError in 2."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file as the hub lists it. `checksum` is the sha256 of an LFS file, of others git's blob id (40 digits)."""

    repo: str
    revision: str
    path: str
    size: int
    checksum: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def is_lfs(self) -> bool:
        return len(self.checksum) == 64


def listing(repo: str, revision: str) -> dict[str, File]:
    """What the hub has at that commit, by path; files without size or checksum are left out. One request.

    Raises WeightsError when the answer is no listing, and what the HTTP client raises.
    """
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # HfApi has none of its own: it would wait for a silent server for ever
    try:
        info = _with_retries(
            lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout), f"listing {repo}"
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{constants.ENDPOINT} does not answer as a hub for {repo} ({_line(error)}): check HF_ENDPOINT and proxy"
        ) from error
    files = {}
    for entry in info.siblings or ():
        checksum = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if entry.size is not None and checksum:
            files[entry.rfilename] = File(repo, revision, entry.rfilename, entry.size, checksum)
    return files


def download(file: File, arriving: Path, stored: Path) -> None:
    """Put the verified file at `stored`, by way of `arriving` (same filesystem), which an earlier try may have begun.

    Raises WeightsError when it arrives broken twice, and what the HTTP client and the disk raise.
    """
    arriving.parent.mkdir(parents=True, exist_ok=True)
    stored.parent.mkdir(parents=True, exist_ok=True)
    wrong: str | None = None
    for transfer in (_copy_or_transfer, _transfer):
        _with_retries(lambda: transfer(file, arriving), file.path, lambda: size(arriving))  # noqa: B023 – called at once
        log.info("%s: comparing with the hub's checksum", file.path)
        wrong = mismatch(arriving, file)
        if wrong is None:
            arriving.replace(stored)
            return
        log.warning("%s arrived with %s: thrown away", file.path, wrong)
        arriving.unlink()
    raise WeightsError(
        f"{file.path} of {file.repo} arrived broken twice ({wrong}): try again later, "
        f"and look at the proxy or mirror between here and {constants.ENDPOINT}"
    )


def mismatch(path: Path, file: File) -> str | None:
    """How the content differs from what the hub lists, None when it does not. Reads the whole file."""
    if (bytes_here := size(path)) != file.size:
        return f"{bytes_here} bytes instead of {file.size}"
    start = hashlib.sha256() if file.is_lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: start).hexdigest()
    return None if digest == file.checksum else f"checksum {digest} instead of {file.checksum}"


def in_place(path: Path, file: File) -> bool:
    """Whether a file that is already there can stay: sound and of the right size. Reads its header only."""
    return problem(path) is None and size(path) == file.size


def size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def scratch(arriving: Path) -> Path:
    """The folder in which hf_hub_download works; of no use to anyone once its process is gone."""
    return arriving.with_suffix(".xet")


def _copy_or_transfer(file: File, arriving: Path) -> None:
    copy = None if arriving.exists() else try_to_load_from_cache(file.repo, file.path, revision=file.revision)
    if isinstance(copy, str) and in_place(Path(copy), file):
        shutil.copyfile(copy, arriving)
    _transfer(file, arriving)


def _transfer(file: File, arriving: Path) -> None:
    if not arriving.exists() and _offers_xet(file):
        arriving.touch()  # whoever finds it after a kill takes the resumable way
        folder = scratch(arriving)
        try:
            done = hf_hub_download(
                file.repo, file.path, revision=file.revision, local_dir=folder, cache_dir=folder / "no-cache"
            )
            Path(done).replace(arriving)
        except Exception as error:  # hf_xet's are of any type; what is wrong for good is wrong in _resume, too
            log.warning("%s: %s; going on over plain HTTP", file.path, _line(error))
        shutil.rmtree(folder, ignore_errors=True)
    if size(arriving) < file.size:
        _resume(file, arriving)


def _offers_xet(file: File) -> bool:
    if not file.is_lfs or constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    return get_hf_file_metadata(hf_hub_url(file.repo, file.path, revision=file.revision)).xet_file_data is not None


def _resume(file: File, arriving: Path) -> None:
    have = size(arriving)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    url = hf_hub_url(file.repo, file.path, revision=file.revision)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        have = have if response.status_code == 206 else 0  # 200: a server without ranges sends the whole file
        hidden, often = constants.HF_HUB_DISABLE_PROGRESS_BARS is True, 0.1 if sys.stderr.isatty() else 5
        bar = tqdm(
            desc=file.path, total=file.size, initial=have, unit="B", unit_scale=True, disable=hidden, mininterval=often
        )
        with bar, arriving.open("ab" if have else "wb") as out:
            for chunk in response.iter_bytes():
                bar.update(out.write(chunk))
    if size(arriving) < file.size:
        raise ConnectionError(f"the connection ended after {size(arriving)} of {file.size} bytes")


def _with_retries(action: Callable[[], T], what: str, progress: Callable[[], int] = lambda: 0) -> T:
    """Try again after errors that pass, as long as tries bring progress or WAITS last."""
    waits, reached = iter(WAITS), progress()
    while True:
        try:
            return action()
        except (OSError, HTTPError) as error:
            if progress() > reached:
                waits, reached = iter(WAITS), progress()
            wait = next(waits, None)
            if wait is None or not _passes(error):
                raise
            log.warning("%s: %s; trying again in %d s", what, _line(error), wait)
            time.sleep(wait)


def _passes(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, (HTTPError, ConnectionError)) and not isinstance(error, OfflineModeIsEnabled)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
