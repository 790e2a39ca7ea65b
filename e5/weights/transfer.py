"""Download one file from the hub: transfer, resume, retry, verify. `e5.weights.fetch` decides where files go.

hf_hub_download does the transfer if the hub offers the file in its chunked storage (Xet), which is faster than one
connection. All other files, and interrupted Xet transfers, go through `_resume`. It exists because of how
huggingface_hub 1.31 and 2.4 handled a 30 MB file: they resume after a closed connection, but a connection reset at
25 MB ends the transfer and deletes what has arrived, and after a kill the file starts from zero and leaves an orphan
(1.5 resumed). One file of the flagship has 9.9 GB.

The hub is not trusted: its listing is validated, no file grows beyond its listed size, and no token is sent over plain
HTTP to another machine. Not limited: the size of the listing itself, and what hf_xet writes before it is verified.
"""

import hashlib
import importlib.util
import ipaddress
import logging
import math
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)

# HTTPError is httpx's in huggingface_hub 1 and httpx2's in 2; the module imports it without declaring a re-export.
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # lazy exports
from tqdm import tqdm

from e5.errors import WeightsError
from e5.weights.files import problem

RETRY_WAITS = (1, 2, 4, 8)
"""Seconds to wait before each retry. The sequence starts over whenever a try transferred more bytes."""
TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
"""The statuses that huggingface_hub retries too, but only for the HEAD request of a file, not for listing or GET."""

CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file in the hub's listing. `checksum`: the sha256 of an LFS file (64 digits), else the git blob id (40)."""

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
    """List the repository's files at a commit, by path, in one request. Omits files without size or checksum.

    Raises WeightsError if the response is not a valid listing, or if the token would be sent unencrypted, and the HTTP
    client's errors.
    """
    _check_token_stays_secret()
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # HfApi's default is none: it would wait forever for a silent server
    try:
        info = _with_retries(
            lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout), f"listing {repo}"
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{constants.ENDPOINT} does not answer like a hub for {repo} ({_first_line(error):.200}): "
            "check HF_ENDPOINT and proxy"
        ) from error
    files = {}
    for entry in info.siblings or ():
        checksum: Any = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if entry.size is not None and checksum:
            # The checksum becomes a file's name. The path does not: files are looked up by the catalog's names.
            valid = isinstance(checksum, str) and CHECKSUM.fullmatch(checksum)
            if not valid or type(entry.size) is not int or entry.size < 0 or not isinstance(entry.rfilename, str):
                raise WeightsError(
                    f"{constants.ENDPOINT} lists {entry.rfilename!r:.100} of {repo} with size {entry.size!r:.30} and "
                    f"checksum {checksum!r:.70}, which cannot be right: set HF_ENDPOINT to a hub that you trust"
                )
            files[entry.rfilename] = File(repo, revision, entry.rfilename, entry.size, checksum)
    return files


def _check_token_stays_secret() -> None:
    """Raise WeightsError if huggingface_hub would send a token over plain HTTP to another machine."""
    address = urlsplit(constants.ENDPOINT)
    try:
        is_local = address.hostname == "localhost" or ipaddress.ip_address(address.hostname or "").is_loopback
    except ValueError:  # another name
        is_local = False
    if address.scheme != "https" and not is_local and "authorization" in build_hf_headers():
        raise WeightsError(
            f"HF_ENDPOINT={constants.ENDPOINT} is not encrypted, so that others could read the Hugging Face token: use "
            "an https:// endpoint, or set HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to download without the token"
        )


def download(file: File, partial_file: Path, target: Path) -> None:
    """Download to `partial_file`, continuing an earlier attempt, verify, then rename to `target` (same filesystem).

    Raises WeightsError if the content is corrupt twice, and errors of the HTTP client and the disk.
    """
    partial_file.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    difference: str | None = None
    for transfer in (_copy_or_transfer, _transfer):
        _with_retries(partial(transfer, file, partial_file), file.path, partial(size, partial_file))
        log.info("%s: verifying the checksum", file.path)
        difference = mismatch(partial_file, file)
        if difference is None:
            partial_file.replace(target)
            return
        log.warning("%s arrived with %s: deleted", file.path, difference)
        partial_file.unlink()
    raise WeightsError(
        f"{file.path} of {file.repo} arrived corrupt twice ({difference}): try again later, "
        f"and check the proxy or mirror between this machine and {constants.ENDPOINT}"
    )


def mismatch(path: Path, file: File) -> str | None:
    """Describe how the file's content differs from the hub's listing, None if it does not. Reads the whole file."""
    if (actual_size := size(path)) != file.size:
        return f"{actual_size} bytes instead of {file.size}"
    start = hashlib.sha256() if file.is_lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: start).hexdigest()
    return None if digest == file.checksum else f"checksum {digest} instead of {file.checksum}"


def is_in_place(path: Path, file: File) -> bool:
    """Whether the path already has a valid file of the listed size. Reads only its header."""
    return problem(path) is None and size(path) == file.size


def size(path: Path) -> int:
    """The file's size in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def xet_folder(partial_file: Path) -> Path:
    """The working folder of hf_hub_download. Once its process is gone, nothing can use it."""
    return partial_file.with_suffix(".xet")


def _copy_or_transfer(file: File, partial_file: Path) -> None:
    cached = None if partial_file.exists() else try_to_load_from_cache(file.repo, file.path, revision=file.revision)
    if isinstance(cached, str) and is_in_place(Path(cached), file):
        shutil.copyfile(cached, partial_file)
    _transfer(file, partial_file)


def _transfer(file: File, partial_file: Path) -> None:
    if not partial_file.exists() and _offers_xet(file):
        partial_file.touch()  # if this process is killed, the next one sees the file and resumes over plain HTTP
        folder = xet_folder(partial_file)
        try:
            arrived = hf_hub_download(
                file.repo,
                file.path,
                revision=file.revision,
                local_dir=folder,
                cache_dir=folder / "no-cache",
                tqdm_class=_bounded_progress(file),
            )
            Path(arrived).replace(partial_file)
        except Exception as error:  # hf_xet raises any type; a permanent error will recur in _resume
            log.warning("%s: %s; continuing over plain HTTP", file.path, _first_line(error))
        shutil.rmtree(folder, ignore_errors=True)
    if size(partial_file) < file.size:
        _resume(file, partial_file)


def _offers_xet(file: File) -> bool:
    if not file.is_lfs or constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    metadata = get_hf_file_metadata(hf_hub_url(file.repo, file.path, revision=file.revision))
    return metadata.xet_file_data is not None and (metadata.size, metadata.etag) == (file.size, file.checksum)


def _bounded_progress(file: File) -> type[tqdm]:
    """A progress bar class that raises WeightsError when more bytes arrive than the hub lists."""

    class Progress(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            # The bars of Xet, which have a format, also count transferred bytes: overlapping chunks count twice.
            self.room = math.inf if "bar_format" in options else file.size - initial
            options["disable"] = constants.HF_HUB_DISABLE_PROGRESS_BARS is True
            options["mininterval"] = 0.1 if sys.stderr.isatty() else 5
            super().__init__(*args, initial=initial, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.room -= n or 0
            if self.room < 0:
                raise WeightsError(
                    f"{file.path} of {file.repo} is longer than the {file.size} bytes that {constants.ENDPOINT} lists: "
                    "check the proxy or mirror, or set HF_ENDPOINT to a hub that you trust"
                )
            shown: bool | None = super().update(n)
            return shown

    return Progress


def _resume(file: File, partial_file: Path) -> None:
    have = size(partial_file)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    url = hf_hub_url(file.repo, file.path, revision=file.revision)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            have = 0  # the server ignores Range and sends the whole file
        elif not (sent := response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            partial_file.unlink(missing_ok=True)  # the next try asks for the whole file
            raise ConnectionError(f"the server sent {sent!r:.100}, not the bytes from {have} on")
        bar = _bounded_progress(file)
        progress = bar(desc=file.path, total=file.size, initial=have, unit="B", unit_scale=True)
        with progress, partial_file.open("ab" if have else "wb") as out:
            for chunk in response.iter_bytes():
                progress.update(len(chunk))
                out.write(chunk)
                out.flush()  # so that a kill loses nothing that has arrived
    if size(partial_file) < file.size:
        raise ConnectionError(f"the connection ended after {size(partial_file)} of {file.size} bytes")


def _with_retries(action: Callable[[], T], label: str, transferred: Callable[[], int] = lambda: 0) -> T:
    """Retry after transient errors until RETRY_WAITS runs out without more bytes transferred."""
    waits, reached = iter(RETRY_WAITS), transferred()
    while True:
        try:
            return action()
        except (OSError, HTTPError) as error:
            if transferred() > reached:
                waits, reached = iter(RETRY_WAITS), transferred()
            wait = next(waits, None)
            if wait is None or not _is_transient(error):
                raise
            log.warning("%s: %s; retrying in %d s", label, _first_line(error), wait)
            time.sleep(wait)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT_STATUSES
    return isinstance(error, (HTTPError, ConnectionError)) and not isinstance(error, OfflineModeIsEnabled)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
