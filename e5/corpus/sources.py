"""Input files: find them by paths, folders and globs, local or in a bucket, and know them again.

Parquet, JSONL, CSV, TSV and txt; all but Parquet may be compressed with gzip or zstd.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import fsspec

from e5.corpus.errors import CorpusError

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class SourceFile:
    """`url`: as fsspec opens it. `version`: changes with the content: ETag, or the time of the last change."""

    url: str
    name: str
    format: str
    compression: str | None
    size: int
    version: str


def find(inputs: Sequence[str], without: str | None = None) -> list[SourceFile]:
    """The files of paths, URLs, folders and globs, sorted; `without` those below a folder.

    In folders, names that begin with a point or an underscore are left out, as in Spark. Raises CorpusError for none,
    and for other formats.
    """
    found: dict[str, SourceFile] = {}
    for given in inputs:
        try:
            filesystem, path = fsspec.core.url_to_fs(given)
            filesystem.invalidate_cache()
            if filesystem.isdir(path):
                paths = [each for each in filesystem.find(path) if _format(each) and not _is_hidden(each[len(path) :])]
            elif filesystem.exists(path):
                paths = [path]
            else:
                paths = [each for each in filesystem.glob(path) if not filesystem.isdir(each)]
            described = [_describe(filesystem, each) for each in paths]
        except (OSError, ValueError, ImportError) as error:
            raise CorpusError(f"{given} cannot be read: {error}") from None
        kept = [file for file in described if without is None or not file.url.startswith(f"{without}/")]
        if not kept:
            raise CorpusError(f"{given} has no files of texts: name {', '.join(FORMATS)} files, folders or globs")
        found |= {file.url: file for file in kept}
    files = [found[url] for url in sorted(found)]
    names = _short_names([file.url for file in files])
    return [replace(file, name=name) for file, name in zip(files, names, strict=True)]


def check_unchanged(file: SourceFile) -> None:
    """Raise CorpusError if a file is gone or is another one than when it was found."""
    check_same(find([file.url])[0], file)


def check_same(now: SourceFile, planned: SourceFile) -> None:
    """Raise CorpusError if a file is another one than when it was planned."""
    if (now.size, now.version) != (planned.size, planned.version):
        raise changed(planned)


def changed(file: SourceFile) -> CorpusError:
    return CorpusError(f"{file.url} has changed since the run was planned: use another --out")


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/") if part)


def _describe(filesystem: Any, path: str) -> SourceFile:
    kind = _format(path)
    if kind is None:
        raise CorpusError(f"{path} is of no known format: the names end in {', '.join(FORMATS)}, and .gz or .zst")
    info = filesystem.info(path)
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return SourceFile(filesystem.unstrip_protocol(path), path, *kind, int(info["size"] or 0), str(version))


def _format(path: str) -> tuple[str, str | None] | None:
    """Format and compression by the file's name; None for another kind of file."""
    suffixes = PurePosixPath(path.lower()).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    rest = suffixes[:-1] if compression else suffixes
    kind = FORMATS.get(rest[-1]) if rest else None
    return None if kind is None or (kind == "parquet" and compression) else (kind, compression)


def _short_names(urls: Sequence[str]) -> list[str]:
    """The paths below the folder that all files share."""
    parts = [PurePosixPath(url).parts for url in urls]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return ["/".join(each[shared:]) for each in parts]
