"""Read WordNet's data files. Format: wndb(5WN)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Synset:
    """A set of synonyms with its definition, examples of use and hypernyms (as offsets)."""

    offset: str
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    hypernyms: tuple[str, ...]


def synsets(folder: Path) -> Iterator[Synset]:
    """All synsets of the package below `folder`. An offset starts with its part of speech: "noun00001740"."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / "wordnet-base/usr/share/wordnet" / f"data.{part}").open(encoding="utf-8"):
            if line.startswith("  "):
                continue  # the license
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            count = int(fields[3], 16)
            lemmas = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
            pointers = fields[5 + 2 * count :]
            hypernyms = tuple(
                f"{part}{offset}"
                for kind, offset in zip(pointers[::4], pointers[1::4], strict=False)
                if kind in ("@", "@i")
            )
            examples = tuple(re.findall(r'"([^"]+)"', gloss))
            definition = re.sub(r'[;,]?\s*"[^"]*"(\s*-[^;]*)?', "", gloss).strip(" ;\n")
            yield Synset(f"{part}{fields[0]}", lemmas, definition, examples, hypernyms)


def definitions(folder: Path) -> Iterator[str]:
    for synset in synsets(folder):
        yield synset.definition


def entries(folder: Path) -> Iterator[str]:
    """`word: definition` for up to three words of a synset, proper nouns included."""
    for synset in synsets(folder):
        for lemma in synset.lemmas[:3]:
            yield f"{lemma}: {synset.definition}"


def usages(folder: Path) -> Iterator[str]:
    """Examples of use, mostly phrases of everyday speech."""
    for synset in synsets(folder):
        yield from synset.examples


def nouns(folder: Path) -> list[str]:
    """The distinct nouns, of one word or more."""
    lemmas = (lemma for synset in synsets(folder) if synset.offset.startswith("noun") for lemma in synset.lemmas)
    return list(dict.fromkeys(lemmas))
