"""Read the fetched packages as plain texts: sentences, definitions, paragraphs. `SOURCES` lists the readers.

The readers clean up markup only; `training.corpus` selects the texts.
"""

import gzip
import html.parser
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from training import wordnet
from training.fetching import SPEECHES, npm_folder

# Closing quotes and brackets belong to their sentence. A lookbehind has a fixed width: one case for each of 0, 1 and 2.
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\]])|(?<=[.!?]["')\]]{2}))\s+(?=["'(\[]*[A-Z0-9])""")
ABBREVIATION = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|cf|No|Sen|Gov|Gen|Rep|Jr|Inc|Corp|Co)\.$")


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences by punctuation and capitals."""
    result: list[str] = []
    for piece in SENTENCE_END.split(paragraph.strip()):
        if result and ABBREVIATION.search(result[-1]):
            result[-1] += " " + piece
        elif piece:
            result.append(piece)
    return result


def packages(folder: Path) -> Iterator[str]:
    """Debian's package descriptions: the short one, each paragraph, and the paragraph's sentences."""
    for record in (folder / "descriptions.txt").read_text(encoding="utf-8").split("\n\n"):
        _, separator, text = record.partition("Description-en: ")
        if not separator:
            continue
        short, _, long = text.partition("\n")
        yield re.sub(r"\s*\([^)]*\)$", "", short).strip()
        # A line with only a dot ends a paragraph. Lines indented further are lists and listings.
        for raw in re.split(r"\n \.\n", "\n" + long):
            if not re.search(r"\n {2,}", raw):
                paragraph = " ".join(raw.split())
                yield paragraph
                yield from sentences(paragraph)


def spellings(folder: Path) -> list[str]:
    """SCOWL's American spelling dictionary: 350,000 words and names, without genitives."""
    file = folder / "wamerican-huge/usr/share/dict/american-english-huge"
    return [word for word in file.read_text(encoding="utf-8").split() if word.isascii() and word.isalpha()]


def _dictionary(folder: Path, name: str) -> Iterator[list[str]]:
    """The entries of a dictd dictionary, each as its lines."""
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
    """The GNU Collaborative International Dictionary of English: definitions and examples of use."""
    for entry in _dictionary(folder, "gcide"):
        for paragraph in "\n".join(entry[1:]).split("\n\n"):
            text = " ".join(paragraph.split())
            text = re.sub(r"\[[^\]]*\]|\{|\}|--[A-Z][\w.' ()]*$|^\d+\.|\([A-Z][\w.& ]*\)", " ", text)
            if not re.match(r"\s*(Syn|Note|Usage|\w+\s*\\)", text):
                for definition in re.split(r";\s+(?=as,|hence)", text):
                    yield from sentences(" ".join(definition.removeprefix("as, ").split()))


def terms(folder: Path) -> Iterator[str]:
    """Two dictionaries of computing: FOLDOC and the Jargon File."""
    for name in ("foldoc", "jargon"):
        for entry in _dictionary(folder, name):
            for paragraph in "\n".join(entry[1:]).split("\n\n"):
                yield from sentences(re.sub(r"[{}]|<[^>]*>|\[[^\]]*\]", "", " ".join(paragraph.split())))


def fortunes(folder: Path) -> Iterator[str]:
    """Quotations, jokes and proverbs, without their authors."""
    for file in sorted((folder / "fortunes/usr/share/games/fortunes").iterdir()):
        if not file.suffix and file.is_file() and file.name not in ("ascii-art", "translate-me"):
            for fortune in file.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
                yield from sentences(" ".join(re.sub(r"\n\s*--.*", "", fortune, flags=re.DOTALL).split()))


def speeches(folder: Path) -> Iterator[str]:
    """State of the Union addresses since 1945. Older ones are in older English."""
    for file in sorted((npm_folder(folder, SPEECHES) / "package/data").glob("*.txt")):
        if int(file.name[:4]) >= 1945:
            for line in file.read_text(encoding="utf-8").splitlines():
                yield from sentences(re.sub(r"\[[^\]]*\]", "", line))


def manuals(folder: Path) -> Iterator[str]:
    """Sentences of manual pages, without markup. Format: man(7)."""
    for file in sorted((folder / "manpages/usr/share/man").glob("man[1-8]/*.gz")):
        with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
            text = re.sub(r"\\f[BIRP]|\\&|\\\|", "", lines.read()).replace("\\-", "-").replace("\\(aq", "'")
        text = re.sub(r"\n\.(?:B|I|BR|IR|RB|RI|BI|IB) (.*)", lambda match: "\n" + match[1].replace(" ", ""), text)
        for paragraph in re.split(r"\n\.[^\n]*", text):
            if "\\" not in paragraph:
                yield from sentences(" ".join(paragraph.split()))


class _BlockParser(html.parser.HTMLParser):
    """Collects each paragraph, list item, table cell and heading: its tag and its text."""

    BLOCKS = frozenset({"p", "li", "h1", "h2", "h3", "h4", "dd", "dt", "td", "title", "item"})
    HIDDEN = frozenset({"script", "style", "pre", "screen", "code"})

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[str, str]] = []
        self._tag = ""
        self._text: list[str] = []
        self._hidden_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden_depth += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self._end_block(next_tag=tag)

    def handle_endtag(self, tag: str) -> None:
        # Some pages close tags that they never opened.
        self._hidden_depth = max(0, self._hidden_depth - (tag in self.HIDDEN))
        if tag in self.BLOCKS:
            self._end_block(next_tag="")

    def handle_data(self, data: str) -> None:
        if not self._hidden_depth:
            self._text.append(data)

    def _end_block(self, next_tag: str) -> None:
        if text := " ".join("".join(self._text).split()):
            self.blocks.append((self._tag, text))
        self._tag, self._text = next_tag, []


def blocks(page: Path) -> list[tuple[str, str]]:
    """The paragraphs, list items, table cells and headings of an HTML or Mallard page: tags and texts."""
    parser = _BlockParser()
    parser.feed(page.read_text(encoding="utf-8", errors="replace"))
    return parser.blocks


def _pages(pattern: str) -> Callable[[Path], Iterator[str]]:
    """A reader of HTML or Mallard pages: each paragraph, and its sentences. `pattern`: a glob below the folder."""

    def read(folder: Path) -> Iterator[str]:
        for file in sorted(folder.glob(pattern)):
            for _, paragraph in blocks(file):
                yield paragraph
                yield from sentences(paragraph)

    return read


SOURCES: dict[str, Callable[[Path], Iterator[str]]] = {
    "definitions": wordnet.definitions,
    "entries": wordnet.entries,
    "usages": wordnet.usages,
    "packages": packages,
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
