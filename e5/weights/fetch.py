"""The hub → this machine: which files are needed and where they go, in the hub's own cache or in a folder.

A file travels under a name of its own in a staging folder, is compared with the size and the checksum that the hub
lists at the pinned commit, and only then renamed to the name that readers know. So whatever a reader can see has been
verified, also when a process is killed at any point, and no journal is needed. What is already in place and passes
the structural check of `e5.weights.files` is neither fetched nor hashed again. `e5.weights.transfer` moves and
verifies one file.
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
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

from e5.catalog import Model, Part
from e5.errors import WeightsError
from e5.weights import transfer
from e5.weights.files import LocalWeights, check, in_folder, problem, problems, shard_names
from e5.weights.transfer import File, HTTPError

FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class Folder:
    """Files in a folder of the user's, in the layout that `e5.weights.locate.in_folder` reads."""

    keeps_others = True
    """Whether a sound file that is not the hub's stays: here it may be the user's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def visible(self, part: Part, name: str) -> Path:
        """Where readers find the file."""
        return self.root / part.folder / name

    def stored(self, part: Part, file: File) -> Path:
        """Where its bytes are kept."""
        return self.visible(part, file.name)

    def staging(self, part: Part) -> Path:
        """Where files are that nobody has verified yet."""
        return self.root / ".incomplete"


class Cache(Folder):
    """Files in huggingface_hub's cache, in its documented layout, so that other tools find them as well."""

    keeps_others = False

    def __init__(self) -> None:
        super().__init__(cache_folder())

    def visible(self, part: Part, name: str) -> Path:
        return self._repo(part) / "snapshots" / part.revision / part.subfolder / name

    def stored(self, part: Part, file: File) -> Path:
        return self._repo(part) / "blobs" / file.checksum

    def staging(self, part: Part) -> Path:
        return self._repo(part) / ".incomplete"

    def _repo(self, part: Part) -> Path:
        return self.root / f"models--{part.repo.replace('/', '--')}"


def cache_folder() -> Path:
    """huggingface_hub's cache, as HF_HOME and HF_HUB_CACHE have it."""
    return Path(constants.HF_HUB_CACHE)


def cached(model: Model, source: str) -> LocalWeights | None:
    """The model in the hub's cache at the pinned commits, unchecked; None when a part is not there. No request."""
    where: dict[str, Path] = {}
    for part in model.parts(source):
        path = try_to_load_from_cache(part.repo, _in_repo(part, part.files[0]), revision=part.revision)
        if not isinstance(path, str):
            return None
        where.update(dict.fromkeys(part.files, Path(path).parent))
    tokenizer = where["tokenizer.json"] / "tokenizer.json"
    return LocalWeights(source, where["config.json"], tokenizer, where.get("adapter_config.json"))


def to_cache(model: Model, source: str) -> LocalWeights:
    """Fetch what the hub's cache lacks. Raises WeightsError that says what to do; what has arrived is kept."""
    store = Cache()
    with _translate_errors(model, source):
        if constants.HF_HUB_OFFLINE:  # before anything is written: the disk may be read-only as well
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        with _locked(store.root / ".locks" / f"e5-{model.name}.lock"):
            _fetch(model, source, store)
    found = cached(model, source)
    problems = check(model, found) if found else [f"it is gone again from {store.root}"]
    if found is None or problems:
        raise WeightsError(f"{model.name} was fetched, but {'; '.join(problems)}")
    return found


def to_folder(model: Model, source: str, folder: Path) -> LocalWeights:
    """Fetch into `folder`, which appears when it is complete; one that exists is completed file by file.

    Raises WeightsError that says what to do; what has arrived is kept.
    """
    with _translate_errors(model, source), _locked(folder.with_name(f".{folder.name}.lock")):
        work = folder if folder.exists() else folder.with_name(f".incomplete-{folder.name}")
        _fetch(model, source, Folder(work))
        if work != folder:
            work.rename(folder)
    return in_folder(model, folder, source)


def _fetch(model: Model, source: str, store: Folder) -> None:
    lacking: list[tuple[Part, File]] = []
    for part in model.parts(source):
        if problems(store.visible(part, ""), part.files, part.one_of):
            with _translate_errors(model, source, part):
                lacking += [(part, file) for file in _lacking(part, store)]
    _check_space(model, store, lacking)
    for part, file in lacking:
        with _translate_errors(model, source, part):
            _obtain(part, file, store)
    for part in model.parts(source):
        with suppress(OSError):  # not empty: another source of this model was cut in the middle
            store.staging(part).rmdir()


def _lacking(part: Part, store: Folder) -> list[File]:
    """The files of a part that are not in place. An index is fetched at once, because it names more files."""
    listing = transfer.listing(part.repo, part.revision)
    names = [*part.files]
    if part.one_of:
        names.append(next((name for name in part.one_of if _in_repo(part, name) in listing), part.one_of[0]))
    for index in [name for name in names if name.endswith(".index.json")]:
        _obtain(part, _listed(part, index, listing), store)
        names += [shard for shard in shard_names(store.visible(part, index)) if shard not in names]
    files = [_listed(part, name, listing) for name in names]
    return [file for file in files if not transfer.in_place(store.visible(part, file.name), file)]


def _listed(part: Part, name: str, listing: dict[str, File]) -> File:
    if file := listing.get(_in_repo(part, name)):
        return file
    raise WeightsError(
        f"{part.repo} at {part.revision} lists no {name} with its size and checksum: "
        f"set HF_ENDPOINT ({constants.ENDPOINT}) to a complete hub"
    )


def _obtain(part: Part, file: File, store: Folder) -> None:
    visible, stored = store.visible(part, file.name), store.stored(part, file)
    if transfer.in_place(visible, file):
        return
    if store.keeps_others and problem(visible) is None:
        raise WeightsError(f"{visible} is not the file of {file.repo}: move it or choose a new folder")
    visible.unlink(missing_ok=True)
    # a blob may be there already: another commit had the same file, or a process was killed before it could link it
    if not stored.exists() or transfer.mismatch(stored, file):
        transfer.download(file, _arriving(part, file, store), stored)
    if stored != visible:
        visible.parent.mkdir(parents=True, exist_ok=True)
        try:
            visible.symlink_to(os.path.relpath(stored, visible.parent))
        except FileExistsError:
            log.debug("%s was linked by another tool in the meantime", visible)
        except OSError:  # a filesystem without symlinks: there huggingface_hub, too, keeps the file itself here
            stored.replace(visible)


def _arriving(part: Part, file: File, store: Folder) -> Path:
    return store.staging(part) / f"{file.checksum}.part"


def _in_repo(part: Part, name: str) -> str:
    return f"{part.subfolder}/{name}" if part.subfolder else name


def _check_space(model: Model, store: Folder, lacking: list[tuple[Part, File]]) -> None:
    need = 0
    for part, file in lacking:
        arriving = _arriving(part, file, store)
        shutil.rmtree(transfer.scratch(arriving), ignore_errors=True)
        need += file.size - transfer.size(arriving)
    disk = next(path for path in (store.root, *store.root.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if need > free:
        raise WeightsError(f"{model.name} needs {_gb(need)} more, {store.root} has {_gb(free)} free: {_MAKE_SPACE}")
    if lacking:
        log.info("%s: fetching %d files, %s, into %s", model.name, len(lacking), _gb(need), store.root)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.warning("another process is fetching these weights; waiting for it (%s)", path)
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
    try:
        yield
    except (OSError, HTTPError) as error:
        raise WeightsError(_translation(error, model, source, part or model.parts(source)[0])) from error


def _translation(error: Exception, model: Model, source: str, part: Part) -> str:
    elsewhere = (
        f"or fetch elsewhere (scripts/download_weights.py --model {model.name} --source {source} --to FOLDER) "
        "and set E5_WEIGHTS to a copy of FOLDER"
    )
    if isinstance(error, OfflineModeIsEnabled):
        return f"{model.name}: no complete copy here, and HF_HUB_OFFLINE forbids to fetch one: unset it, {elsewhere}"
    if isinstance(error, HfHubHTTPError):
        return f"{model.name}: {_refusal(error, model, source, part)}, {elsewhere}"
    if isinstance(error, (HTTPError, ConnectionError)):
        return (
            f"{model.name}: no complete copy here, and {constants.ENDPOINT} cannot be reached ({error}): check network "
            f"and proxy and start again, which goes on where this stopped, {elsewhere}"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{model.name}: the disk is full ({error}): {_MAKE_SPACE}; a new start goes on where this stopped"
    return f"{model.name}: cannot write the weights ({error}): {_MAKE_SPACE}"


def _refusal(error: HfHubHTTPError, model: Model, source: str, part: Part) -> str:
    status = error.response.status_code
    page = f"https://huggingface.co/{part.repo}"
    if status in (401, 403):
        why = "HF_TOKEN is unset or wrong" if status == 401 else "the account of HF_TOKEN has no access"
        cure = f"see {page}, and set HF_TOKEN to a token that is valid, or unset it"
        if part.gated:
            cure = f"accept its licence on {page} and set HF_TOKEN to a token of that account"
        open_source = source != "merged" and any(name == "merged" for name, _ in model.sources)
        return f"{part.repo} refuses access ({status}, {why}): {cure}" + (
            ", or set E5_SOURCE=merged, which does without that repository" if open_source else ""
        )
    if status == 404:
        what = f"no commit {part.revision}" if isinstance(error, RevisionNotFoundError) else "no such repository"
        return f"{constants.ENDPOINT} has {what} for {part.repo} (404): set HF_ENDPOINT to a complete hub"
    return (
        f"{constants.ENDPOINT} answers {status} for {part.repo}, also after {len(transfer.WAITS)} more tries: "
        "start again later, which goes on where this stopped"
    )
