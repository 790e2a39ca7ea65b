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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise, takewhile, tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as TokenizerFile

from e5.errors import WeightsError
from e5.vectors import Vectors

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
    """The token sequences that a model reads of N texts: one of each text, or several windows of a long one.

    `lengths`: tokens of each text before truncation, with prompt and special tokens. `weights`: None without windows,
    else for each text the numbers of its own tokens in each of its windows.
    """

    ids: list[TokenIds]
    lengths: list[int]
    weights: list[list[int]] | None = None

    @cached_property
    def total(self) -> int:
        """Tokens that the model reads, special tokens included."""
        return sum(map(len, self.ids))

    @cached_property
    def truncated(self) -> list[int]:
        """Indices of the texts of which tokens were cut off."""
        if self.weights is not None:
            return []
        return [
            index for index, (ids, length) in enumerate(zip(self.ids, self.lengths, strict=True)) if length > len(ids)
        ]

    @property
    def texts(self) -> Sequence[int]:
        """For each sequence of `ids`, the index of its text."""
        if self.weights is None:
            return range(len(self.ids))
        return [index for index, windows in enumerate(self.weights) for _ in windows]

    def average(self, vectors: Vectors) -> Vectors:
        """Vectors of the sequences [len(ids), D] → of the texts [N, D]: the mean of a text's windows, by their weights.

        Computed in float64, so a text with one window keeps its vector to the last bit.
        """
        if self.weights is None or len(self.ids) == len(self.lengths):
            return vectors
        weights = np.array(list(chain.from_iterable(self.weights)), np.float64)[:, None]
        starts = [0, *accumulate(map(len, self.weights))][:-1]
        means: Vectors = (np.add.reduceat(vectors * weights, starts) / np.add.reduceat(weights, starts)).astype("f4")
        return means

    @classmethod
    def join(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """The tokens of all parts' texts, in order."""
        weights = [part.weights for part in parts if part.weights is not None]
        return cls(
            [ids for part in parts for ids in part.ids],
            [length for part in parts for length in part.lengths],
            list(chain.from_iterable(weights)) if weights else None,
        )

    def __len__(self) -> int:
        """Number of sequences."""
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
        room = self.max_tokens - self._special
        ids: list[TokenIds] = []
        lengths: list[int] = []
        for body in self._encode_bodies(texts):
            lengths.append(len(body) + self._special)
            ids.append(self._sequence(body[:room]))
        return Tokens(ids, lengths)

    def encode_windows(self, texts: Iterable[str], prompts: Iterable[str]) -> Tokens:
        """Tokenize texts, each with its prompt in front. A longer one than `max_tokens` is split between tokens.

        Each window has the special tokens and the prompt's tokens, and as many of the text's own as fit. The first
        window is what `encode` keeps.
        """
        ids: list[TokenIds] = []
        lengths: list[int] = []
        weights: list[list[int]] = []
        prompted, kept = tee(zip(prompts, texts, strict=True))
        for (prompt, _), body in zip(kept, self._encode_bodies(map("".join, prompted)), strict=True):
            lengths.append(len(body) + self._special)
            shared = self._shared(prompt, body) if lengths[-1] > self.max_tokens else 0
            room = self.max_tokens - self._special - shared
            windows = [body[start : start + room] for start in range(shared, len(body), room)] or [[]]
            ids += [self._sequence(body[:shared] + window) for window in windows]
            # A text may have no token, such as one of a zero-width character.
            weights.append([max(1, len(window)) for window in windows])
        return Tokens(ids, lengths, weights)

    def spans(self, text: str, prompt: str, windows: Sequence[int]) -> list[tuple[int, int]]:
        """The characters [start, end) of a text that its windows cover, given their numbers of own tokens.

        A character whose tokens are in two windows belongs to both.
        """
        offsets = self._file.encode(prompt + text, add_special_tokens=False).offsets
        if len(offsets) < sum(windows):  # no token, such as of a zero-width character
            return [(0, len(text))] * len(windows)
        ends = list(accumulate(windows, initial=len(offsets) - sum(windows)))
        spans = [
            (max(0, offsets[first][0] - len(prompt)), max(0, offsets[last - 1][1] - len(prompt)))
            for first, last in pairwise(ends)
        ]
        return [(0, spans[0][1]), *spans[1:]] if len(spans) > 1 else [(0, len(text))]

    def pieces(self, ids: TokenIds) -> list[str]:
        """The vocabulary's string for each token id."""
        return [str(self._file.id_to_token(int(token))) for token in ids]

    def cut(self, text: str) -> str:
        """The beginning of a text that has as many whole characters as fit in `max_tokens`.

        For a server that would read more of it. Tokenized again, it has the tokens that `encode` keeps, but for the
        last ones if the cut is in the middle of a word.
        """
        room = self.max_tokens - self._special
        spans = self._file.encode(text, add_special_tokens=False).offsets
        if len(spans) <= room:
            return text
        # A character may have several tokens: a cut between them leaves it out.
        end = min(spans[room - 1][1], spans[room][0]) if room else 0
        return text[:end]

    @property
    def _special(self) -> int:
        """Number of special tokens around a text."""
        return len(self._first) + len(self._last)

    def _sequence(self, body: list[int]) -> TokenIds:
        return np.array([*self._first, *body, *self._last], dtype=np.int32)

    def _shared(self, prompt: str, body: list[int]) -> int:
        """How many of the first tokens are the prompt's own.

        The prompt's last space is left out: SentencePiece puts it into the text's first token.
        """
        prompt_ids = self._file.encode(prompt.rstrip(), add_special_tokens=False).ids
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, body, strict=False)))

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
