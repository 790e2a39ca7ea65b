"""Text → token ids, framed by the model's first and last special token exactly once.

The body is encoded without special tokens and the frame is put around it here. So neither a tokenizer file's
post-processor nor a release of transformers decides whether `</s>` is there: e5-mistral's tokenizer_config.json asks
for it, its tokenizer.json does not add it, and transformers ≥ 5 dropped it silently (nDCG@10 of one retrieval task
.374 → .065).

What looks like a special token in a decoder's text (`</s>`) is encoded as characters, as Mistral's SentencePiece does
it, and cannot forge one. In an encoder's text it is that token, as in the code of the model cards: with XLM-R's Unigram
file it would be in any case, because `<pad>` is a piece like any other there.

Only `tokenizer.json` is read; no code of transformers takes part.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as TokenizerFile

from e5.errors import WeightsError

CHUNK_TEXTS, CHUNK_CHARACTERS = 1024, 1_000_000
"""Per call of the tokenizer: bounds the memory of its Encoding objects, some 100 bytes a token, on a long work list."""

PARALLEL_CHARACTERS = 10_000
"""Below, one thread does it in a few milliseconds. Batch calls wake the tokenizer's threads, which then look for more
work and yield 20 times a request: on a CPU they took 3 % of the time that the model has."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of some texts, one list a text, and how many of the texts were cut to the model's limit."""

    ids: list[list[int]]
    truncated: int

    @property
    def total(self) -> int:
        """Tokens of all texts together, special tokens included."""
        return sum(map(len, self.ids))

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """One model's tokenizer. Thread-safe: encoding changes no state."""

    def __init__(self, path: Path, special_tokens: tuple[str, str], max_tokens: int, *, literal: bool) -> None:
        """Read `tokenizer.json`. `special_tokens`: the special tokens around a text, which `max_tokens` counts.

        `literal`: what looks like a special token inside of a text is characters.
        Raises WeightsError for a file that does not fit.
        """
        try:
            self._file = TokenizerFile.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every kind of broken file
            raise WeightsError(f"{path} is not a tokenizer that can be read ({error}): fetch it again") from error
        self._file.no_truncation()
        self._file.no_padding()
        self._file.encode_special_tokens = literal
        self.max_tokens = max_tokens
        self.first_id, self.last_id = (self._special(path, token) for token in special_tokens)

    def encode(self, texts: Iterable[str]) -> Tokens:
        """Frame and, where needed, truncate each text; the last special token always stays."""
        room = self.max_tokens - 2
        ids: list[list[int]] = []
        truncated = 0
        for body in self._bodies(texts):
            truncated += len(body) > room
            ids.append([self.first_id, *body[:room], self.last_id])
        return Tokens(ids, truncated)

    def _bodies(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for chunk in _chunks(texts):
            if sum(map(len, chunk)) < PARALLEL_CHARACTERS:
                for text in chunk:
                    yield self._file.encode(text, add_special_tokens=False).ids
            else:
                for encoding in self._file.encode_batch_fast(chunk, add_special_tokens=False):
                    yield encoding.ids

    def _special(self, path: Path, token: str) -> int:
        found: int | None = self._file.token_to_id(token)
        if found is None:
            raise WeightsError(f"{path} has no token {token}: it is not the tokenizer of this model")
        return found


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most CHUNK_TEXTS texts, each closed by the text that takes it past CHUNK_CHARACTERS."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK_TEXTS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
