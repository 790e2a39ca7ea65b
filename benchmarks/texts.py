"""Random texts, drawn with a seed from words of the tokenizer's own vocabulary, so that no data file is needed.

Nearly every word is one token, so a text of N tokens is about N words. Reported lengths are counted after tokenizing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from e5 import DEFAULT_TASK, prompts
from e5.embedder import Embedder

MEDIAN_TOKENS, SIGMA = 150, 0.8
"""Mixed lengths are log-normal: half of the texts are below 150 tokens, one in forty is above 720."""
QUERY_TOKENS, DOCUMENT_TOKENS, SHORT_TOKENS = 30, 80, 12


@dataclass(frozen=True)
class Pair:
    """One query and one document as a user writes them, without prompts."""

    query: str
    document: str


class RandomTexts:
    """Texts for one model. The same seed and count give the same texts in every run and on every machine."""

    def __init__(self, embedder: Embedder, tokenizer: Path, seed: int = 0) -> None:
        """`tokenizer`: the embedder's tokenizer.json."""
        self.embedder = embedder
        self.words = _whole_words(tokenizer)
        self.seed = seed

    def mixed(self, count: int) -> list[str]:
        """`count` documents of log-normal length, up to the model's token limit."""
        random = np.random.default_rng([self.seed, 0])
        limit = self.embedder.tokenizer.max_tokens
        lengths = random.lognormal(np.log(MEDIAN_TOKENS), SIGMA, count).round().clip(1, limit)
        return self._documents(random, lengths.astype(int).tolist())

    def short(self, count: int) -> list[str]:
        """`count` documents of 12 tokens on average."""
        random = np.random.default_rng([self.seed, 1])
        return self._documents(random, random.integers(SHORT_TOKENS - 4, SHORT_TOKENS + 5, count).tolist())

    def rows(self, count: int, shortest: int, longest: int) -> Iterator[str]:
        """`count` texts of `shortest` to `longest` words, drawn while they are read."""
        random = np.random.default_rng([self.seed, 5])
        for words in random.integers(shortest, longest + 1, count).tolist():
            yield self._text(random, words)

    def of_words(self, counts: Sequence[int]) -> list[str]:
        """One text per count, of that many words: as many tokens, plus the special tokens."""
        random = np.random.default_rng([self.seed, 3])
        return [self._text(random, count) for count in counts]

    def pairs(self, count: int) -> list[Pair]:
        """`count` pairs of a 30-token query, including its instruction, and an 80-token document."""
        random = np.random.default_rng([self.seed, 2])
        query_words = QUERY_TOKENS - self._query_overhead()
        documents = self._documents(random, [DOCUMENT_TOKENS] * count)
        return [Pair(self._text(random, query_words), document) for document in documents]

    def queries(self, count: int, shortest: int, longest: int) -> list[str]:
        """`count` queries of `shortest` to `longest` tokens, including their instruction."""
        random = np.random.default_rng([self.seed, 4])
        overhead = self._query_overhead()
        tokens = random.integers(shortest, longest + 1, count).tolist()
        return [self._text(random, number - overhead) for number in tokens]

    def _query_overhead(self) -> int:
        """Tokens of a query's instruction, with the special tokens."""
        return self._length(prompts.query_prompt(self.embedder.model.prompt, DEFAULT_TASK, ""))

    def _documents(self, random: np.random.Generator, tokens: Sequence[int]) -> list[str]:
        overhead = self._length(prompts.document_prompt(self.embedder.model.prompt, ""))
        return [self._text(random, count - overhead) for count in tokens]

    def _text(self, random: np.random.Generator, words: int) -> str:
        """That many words, but at least one: an empty text cannot be embedded."""
        return " ".join(self.words[index] for index in random.integers(len(self.words), size=max(1, words)))

    def _length(self, text: str) -> int:
        """Tokens of a prompted text, including special tokens."""
        return self.embedder.tokenizer.encode([text]).total


def _whole_words(tokenizer: Path) -> list[str]:
    """Lower-case ASCII words that are a single token, ordered by id."""
    vocabulary = Tokenizer.from_file(str(tokenizer)).get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    if any(piece.startswith("▁") for piece in pieces):  # SentencePiece marks word starts; WordPiece marks continuations
        pieces = [piece[1:] for piece in pieces if piece.startswith("▁")]
    return [word for word in pieces if len(word) > 1 and word.isascii() and word.isalpha() and word.islower()]
