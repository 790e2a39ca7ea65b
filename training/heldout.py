"""Sentences of the evaluation sets, known by hash. No training text may be or contain one."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.quality import RETRIEVAL, SIMILARITY, Candidate, read_candidates, read_pairs

HELDOUT = "heldout_sentences.sha256"
STS_DEV, QA_DEV = SIMILARITY, RETRIEVAL
MIN_PART_WORDS = 3
"""Shorter held-out sentences ("go up") are ordinary English inside other texts. They count only as a whole text or
between two punctuation marks: "ascent: go up"."""
_PUNCTUATION = re.compile(r"[.!?;:,()\"]+")


def normalize_text(text: str) -> str:
    """Lower case; each run of characters other than a–z and 0–9 becomes one space; no space at the ends."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def text_hash(text: str) -> str:
    """The first 16 hex digits of the normalized text's SHA-256."""
    return hashlib.sha256(normalize_text(text).encode()).hexdigest()[:16]


class Heldout:
    """The held-out sentences, given as the `text_hash` of each."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = frozenset(hashes)

    @classmethod
    def read(cls, data: Path) -> "Heldout":
        """The test splits' sentences (listed as hashes) and the dev splits', which choose between models.

        Raises SystemExit for an empty or malformed list, which would hold nothing out.
        """
        hashes = (data / HELDOUT).read_text().split()
        malformed = next((line for line in hashes if not re.fullmatch("[0-9a-f]{16}", line)), None)
        if not hashes or malformed:
            raise SystemExit(
                f"{data / HELDOUT} is not a list of 16 hex digits a line ({malformed or 'empty'}): download it again"
            )
        sts = (text for pair in read_pairs(data / STS_DEV) for text in (pair.first, pair.second))
        return cls([*hashes, *map(text_hash, sts), *map(text_hash, read_qa(data / QA_DEV))])

    def is_heldout(self, text: str) -> bool:
        """Whether the whole text is a held-out sentence."""
        return text_hash(text) in self._hashes

    def find(self, text: str) -> str | None:
        """The first held-out sentence that the text is or contains, normalized."""
        if self.is_heldout(text):
            return normalize_text(text)
        words = normalize_text(text).split()
        for start in range(len(words) - MIN_PART_WORDS + 1):
            running = hashlib.sha256()
            for stop, word in enumerate(words[start:], start + 1):
                running.update((" " + word if stop > start + 1 else word).encode())
                if stop - start >= MIN_PART_WORDS and running.hexdigest()[:16] in self._hashes:
                    return " ".join(words[start:stop])
        parts = _PUNCTUATION.split(text)
        return next((normalize_text(part) for part in parts if normalize_text(part) and self.is_heldout(part)), None)

    def any(self, texts: Iterable[str]) -> bool:
        """Whether any of the texts is or contains a held-out sentence."""
        return any(self.find(text) is not None for text in texts)

    def filter(self, texts: Sequence[str], workers: int = 2) -> list[str]:
        """The texts without a held-out sentence, in order."""
        with ProcessPoolExecutor(workers) as pool:
            matches = pool.map(self.find, texts, chunksize=4096)
            return [text for text, match in zip(texts, matches, strict=True) if match is None]


def read_qa(path: Path) -> list[str]:
    """The distinct texts of a TrecQA file: each question, then its sentences, right answers first."""
    questions: dict[str, list[Candidate]] = {}
    for candidate in read_candidates(path):
        questions.setdefault(candidate.question, []).append(candidate)
    texts: dict[str, None] = {}
    for question, candidates in questions.items():
        texts[question] = None
        texts |= dict.fromkeys(row.sentence for row in sorted(candidates, key=lambda row: not row.is_answer))
    return list(texts)
