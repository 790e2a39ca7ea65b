"""Download a model's missing files from the hub, into the hub's cache or a folder.

A file downloads under a temporary name in a staging folder, is verified against the size and checksum that the hub
lists at the pinned commit, and only then gets its final name. If the catalog has a checksum, the hub must list the same
one. So every file under a final name is verified, even if a process is killed at any point, and no journal is needed.
Files that are in place and pass the check of `e5.weights.files` are neither downloaded nor hashed again.
`e5.weights.transfer` downloads one file.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RevisionNotFoundError  # type: ignore[attr-defined]

from e5.catalog import Model, Part
from e5.errors import WeightsError
from e5.weights import transfer
from e5.weights.files import LocalWeights, check, in_folder, problem, problems, shard_names
from e5.weights.transfer import File

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class FolderStore:
    """Stores files in a user's folder, in the layout that `e5.weights.files.in_folder` reads."""

    keeps_user_files = True
    """Whether a valid file that differs from the hub's is kept: in a user's folder it may be the user's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, part: Part, name: str) -> Path:
        """Where readers look for the file."""
        return self.root / part.folder / name

    def blob(self, part: Part, file: File) -> Path:
        """Where the content is stored."""
        return self.path(part, file.name)

    def staging(self, part: Part) -> Path:
        """The folder for files that are not verified yet."""
        return self.root / ".incomplete"

    def partial_file(self, part: Part, file: File) -> Path:
        """Where the file downloads to."""
        return self.staging(part) / f"{file.checksum}.part"


class CacheStore(FolderStore):
    """Stores files in huggingface_hub's cache, in its documented layout, so that other tools find them too."""

    keeps_user_files = False

    def __init__(self) -> None:
        super().__init__(Path(constants.HF_HUB_CACHE))

    def path(self, part: Part, name: str) -> Path:
        return self._repo(part) / "snapshots" / part.revision / part.subfolder / name

    def blob(self, part: Part, file: File) -> Path:
        return self._repo(part) / "blobs" / file.checksum

    def staging(self, part: Part) -> Path:
        return self._repo(part) / ".incomplete"

    def _repo(self, part: Part) -> Path:
        return self.root / f"models--{part.repo.replace('/', '--')}"


def cached(model: Model, source: str) -> LocalWeights | None:
    """The model in the hub's cache at the pinned commits; None if a part is absent. Unchecked, and no request."""
    folders: dict[str, Path] = {}
    for part in model.parts(source):
        path = try_to_load_from_cache(part.repo, _path_in_repo(part, part.files[0]), revision=part.revision)
        if not isinstance(path, str):
            return None
        folders.update(dict.fromkeys(part.files, Path(path).parent))
    tokenizer = folders["tokenizer.json"] / "tokenizer.json"
    return LocalWeights(source, folders["config.json"], tokenizer, folders.get("adapter_config.json"))


def to_cache(model: Model, source: str) -> LocalWeights:
    """Download what the hub's cache lacks. Raises WeightsError with the cure; partial downloads are kept."""
    store = CacheStore()
    with _translate_errors(model, source):
        if constants.HF_HUB_OFFLINE:  # checked before anything is written, as the disk may be read-only
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        with _locked(store.root / ".locks" / f"e5-{model.name}.lock"):
            _download_missing(model, source, store)
    weights = cached(model, source)
    problems = check(model, weights) if weights else [f"it is no longer in {store.root}"]
    if weights is None or problems:
        raise WeightsError(f"{model.name} was downloaded, but {'; '.join(problems)}")
    return weights


def to_folder(model: Model, source: str, folder: Path) -> LocalWeights:
    """Download into `folder`. A new folder appears when it is complete; an existing one is completed file by file.

    Raises WeightsError with the cure; partial downloads are kept.
    """
    with _translate_errors(model, source), _locked(folder.with_name(f".{folder.name}.lock")):
        work = folder if folder.exists() else folder.with_name(f".incomplete-{folder.name}")
        _download_missing(model, source, FolderStore(work))
        if work != folder:
            work.rename(folder)
    return in_folder(model, folder, source)


def _download_missing(model: Model, source: str, store: FolderStore) -> None:
    missing: list[tuple[Part, File]] = []
    for part in model.parts(source):
        if problems(store.path(part, ""), part.files, part.one_of):
            with _translate_errors(model, source, part):
                missing += [(part, file) for file in _missing_files(part, store)]
    _check_disk_space(model, store, missing)
    for part, file in missing:
        with _translate_errors(model, source, part):
            _put_in_place(part, file, store)
    for part in model.parts(source):
        with suppress(OSError):  # not empty: a download of another source of this model was interrupted
            store.staging(part).rmdir()


def _missing_files(part: Part, store: FolderStore) -> list[File]:
    """List the part's files that are not in place. Downloads an index at once, because it names more files."""
    listing = transfer.listing(part.repo, part.revision)
    names = [*part.files]
    if part.one_of:
        names.append(next((name for name in part.one_of if _path_in_repo(part, name) in listing), part.one_of[0]))
    for index in [name for name in names if name.endswith(".index.json")]:
        _put_in_place(part, _listed(part, index, listing), store)
        if broken := problem(store.path(part, index)):
            raise WeightsError(
                f"{constants.ENDPOINT} sent it, but {broken}, or set HF_ENDPOINT to a hub that you trust"
            )
        names += [shard for shard in shard_names(store.path(part, index)) if shard not in names]
    files = [_listed(part, name, listing) for name in names]
    return [file for file in files if not transfer.is_in_place(store.path(part, file.name), file)]


def _listed(part: Part, name: str, listing: dict[str, File]) -> File:
    file, pinned = listing.get(_path_in_repo(part, name)), part.checksums.get(name)
    if file is None:
        raise WeightsError(
            f"{part.repo} at {part.revision} lists no {name} with size and checksum: "
            f"set HF_ENDPOINT ({constants.ENDPOINT}) to a complete hub"
        )
    if pinned and file.checksum != pinned:
        raise WeightsError(
            f"{constants.ENDPOINT} offers another {name} than the pinned one of {part.repo}: its checksum is "
            f"{file.checksum} instead of {pinned}. Set HF_ENDPOINT to a hub that you trust, or leave it out"
        )
    return file


def _put_in_place(part: Part, file: File, store: FolderStore) -> None:
    """Make the verified file available under its final path, downloading it unless its content is stored already."""
    path, blob = store.path(part, file.name), store.blob(part, file)
    if transfer.is_in_place(path, file):
        return
    if store.keeps_user_files and problem(path) is None:
        raise WeightsError(f"{path} is not the file of {file.repo}: move it or choose a new folder")
    path.unlink(missing_ok=True)
    # The blob may exist: another commit has the same file, or a process was killed before it linked the blob.
    if not blob.exists() or transfer.mismatch(blob, file):
        transfer.download(file, store.partial_file(part, file), blob)
    if blob != path:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except FileExistsError:
            log.debug("another tool has linked %s in the meantime", path)
        except OSError:  # a filesystem without symlinks: huggingface_hub also stores the file itself there
            blob.replace(path)


def _path_in_repo(part: Part, name: str) -> str:
    return f"{part.subfolder}/{name}" if part.subfolder else name


def _check_disk_space(model: Model, store: FolderStore, missing: list[tuple[Part, File]]) -> None:
    needed = 0
    for part, file in missing:
        partial_file = store.partial_file(part, file)
        shutil.rmtree(transfer.xet_folder(partial_file), ignore_errors=True)
        needed += file.size - transfer.size(partial_file)
    disk = next(path for path in (store.root, *store.root.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise WeightsError(f"{model.name} needs {_gb(needed)} more, {store.root} has {_gb(free)} free: {_MAKE_SPACE}")
    if missing:
        log.info("%s: downloading %d files, %s, to %s", model.name, len(missing), _gb(needed), store.root)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.warning("another process is downloading these weights; waiting for it (%s)", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


_MAKE_SPACE = "free space there, or choose another disk (HF_HOME, or scripts/download_weights.py --to)"


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


@contextmanager
def _translate_errors(model: Model, source: str, part: Part | None = None) -> Iterator[None]:
    """Turn errors of the disk and the HTTP client into WeightsError with cause and cure."""
    try:
        yield
    except (OSError, HTTPError) as error:
        raise WeightsError(f"{model.name}: {_message(error, model, source, part or model.parts(source)[0])}") from error


def _message(error: Exception, model: Model, source: str, part: Part) -> str:
    alternative = (
        f"or download on another machine (scripts/download_weights.py --model {model.name} --source {source} "
        "--to FOLDER) and set E5_WEIGHTS to a copy of FOLDER"
    )
    if isinstance(error, OfflineModeIsEnabled):
        return f"no complete copy here, and HF_HUB_OFFLINE forbids downloading one: unset it, {alternative}"
    if isinstance(error, HfHubHTTPError):
        return f"{_http_message(error, model, source, part)}, {alternative}"
    if isinstance(error, (HTTPError, ConnectionError)):
        return (
            f"no complete copy here, and {constants.ENDPOINT} cannot be reached ({error}): check network and proxy and "
            f"start again, which resumes the download, {alternative}"
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"the disk is full ({error}): {_MAKE_SPACE}; the next start resumes the download"
    return f"cannot write the weights ({error}): {_MAKE_SPACE}"


def _http_message(error: HfHubHTTPError, model: Model, source: str, part: Part) -> str:
    status = error.response.status_code
    page = f"https://huggingface.co/{part.repo}"
    if status in (401, 403):
        cause = "HF_TOKEN is unset or wrong" if status == 401 else "the account of HF_TOKEN has no access"
        cure = f"see {page}, and set HF_TOKEN to a valid token, or unset it"
        if part.gated:
            cure = f"accept its license on {page} and set HF_TOKEN to a token of that account"
        if source != "merged" and any(name == "merged" for name, _ in model.sources):
            cure += ", or set E5_SOURCE=merged, which does not need that repository"
        return f"{part.repo} denies access ({status}, {cause}): {cure}"
    if status == 404:
        cause = f"no commit {part.revision}" if isinstance(error, RevisionNotFoundError) else "no such repository"
        return f"{constants.ENDPOINT} has {cause} for {part.repo} (404): set HF_ENDPOINT to a complete hub"
    return (
        f"{constants.ENDPOINT} answers {status} for {part.repo}, even after {len(transfer.RETRY_WAITS)} retries: "
        "start again later, which resumes the download"
    )
