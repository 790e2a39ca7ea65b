"""Text → token ids, with the model's first and last special token around each text exactly once.

This module encodes texts without special tokens and adds those of the catalog itself. So the result depends neither on
the tokenizer file's post-processor nor on the transformers release. e5-mistral shows why: its tokenizer_config.json
asks for `</s>`, its tokenizer.json does not add it, and transformers ≥ 5 dropped it silently (nDCG@10 of one retrieval
task fell from .374 to .065).

A Mistral model encodes special tokens in a text (`</s>`) as characters, as its SentencePiece does, so a text cannot
forge one. Other models read them as tokens, as the model cards' code does. XLM-R's Unigram file leaves no choice:
`<pad>` is an ordinary piece there.

Only `tokenizer.json` is read, without transformers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as TokenizerFile

from e5.errors import WeightsError

TokenIds = NDArray[np.int32]
"""The token ids of one text: int32 [T]."""

CHUNK_TEXTS, CHUNK_CHARACTERS = 1024, 100_000
"""Limits of one tokenizer call, which bound its memory: about 100 bytes a token for the Encoding objects, and XLM-R's
normalization makes up to 18 characters of one (U+FDFA), which takes 1.7 kB. A longer text gets a call of its own."""

PARALLEL_CHARACTERS = 10_000
"""Shorter calls use one thread, which takes a few milliseconds. Batch calls wake the tokenizer's thread pool, whose
threads then look for more work and yield 20 times a request: on a CPU that cost the model 3 % of its time."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N texts, and how many of the texts were truncated."""

    ids: list[TokenIds]
    truncated: int

    @property
    def total(self) -> int:
        """Tokens of all texts, special tokens included."""
        return sum(map(len, self.ids))

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """One model's tokenizer. Thread-safe: encoding changes no state."""

    def __init__(self, path: Path, special_tokens: tuple[str, str] | None, max_tokens: int, *, literal: bool) -> None:
        """Read a `tokenizer.json`.

        `special_tokens`: the first and last token of every text, "" for none; None takes those that the file itself
        adds. `max_tokens` includes them. `literal`: encode special tokens that a text spells out as characters.
        Raises WeightsError for a broken file, or one without these special tokens.
        """
        try:
            self._file = TokenizerFile.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every kind of broken file
            raise WeightsError(f"{path} is not a readable tokenizer ({error}): download it again") from error
        self._file.no_truncation()
        self._file.no_padding()
        self._file.encode_special_tokens = literal
        self.max_tokens = max_tokens
        if special_tokens is None:
            self._first, self._last = self._added(path)
        else:
            self._first, self._last = ([self._special_id(path, token)] if token else [] for token in special_tokens)

    def encode(self, texts: Iterable[str]) -> Tokens:
        """Tokenize texts, truncated to `max_tokens`. Truncation keeps the last special token."""
        room = self.max_tokens - len(self._first) - len(self._last)
        ids: list[TokenIds] = []
        truncated = 0
        for body in self._encode_bodies(texts):
            truncated += len(body) > room
            ids.append(np.array([*self._first, *body[:room], *self._last], dtype=np.int32))
        return Tokens(ids, truncated)

    def cut(self, text: str) -> str:
        """The beginning of a text that has as many whole characters as fit in `max_tokens`.

        For a server that would read more of it. Tokenized again, it has the tokens that `encode` keeps, but for the
        last ones if the cut is in the middle of a word.
        """
        room = self.max_tokens - len(self._first) - len(self._last)
        spans = self._file.encode(text, add_special_tokens=False).offsets
        if len(spans) <= room:
            return text
        # A character may have several tokens: a cut between them leaves it out.
        end = min(spans[room - 1][1], spans[room][0]) if room else 0
        return text[:end]

    def _encode_bodies(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Ids of each text without special tokens."""
        for chunk in _chunks(texts):
            if sum(map(len, chunk)) < PARALLEL_CHARACTERS:
                for text in chunk:
                    yield self._file.encode(text, add_special_tokens=False).ids
            else:
                for encoding in self._file.encode_batch_fast(chunk, add_special_tokens=False):
                    yield encoding.ids

    def _added(self, path: Path) -> tuple[list[int], list[int]]:
        """The ids that the file's own post-processor adds before and after a text."""
        encoding = self._file.encode("a", add_special_tokens=True)
        body = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        first, last = (encoding.ids[: body[0]], encoding.ids[body[-1] + 1 :]) if body else ([], [])
        if not first or not last:
            # Some decoders' files omit the last token, which their training had and pooling reads.
            missing = "at the start" if not first else "at the end"
            raise WeightsError(
                f'{path} adds no special token {missing} of a text: declare "special_tokens" in e5.json, "" for none'
            )
        return first, last

    def _special_id(self, path: Path, token: str) -> int:
        token_id: int | None = self._file.token_to_id(token)
        if token_id is None:
            raise WeightsError(f"{path} has no token {token}: it is not the tokenizer of this model")
        return token_id


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most CHUNK_TEXTS texts and CHUNK_CHARACTERS characters, or of one longer text."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if chunk and (len(chunk) == CHUNK_TEXTS or characters + len(text) > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk
