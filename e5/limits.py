"""What one request may ask for, and how much may wait: so that memory stays flat whatever comes in.

The defaults let through what a client sends on purpose (OpenAI's embeddings API takes 2,048 texts a request, too) and
stop what would occupy a server for minutes. The library itself has no such limits: fronts that serve others check them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from e5.errors import InputError

CHARACTERS_PER_TOKEN = 20
"""So many characters a request may have for each token of its limit: English has 4 to 5, and what is cut off counts."""


@dataclass(frozen=True)
class Limits:
    """Each is the value of the variable that its check names."""

    texts: int = 2_048
    characters: int = 1_000_000
    request_tokens: int = 1_000_000
    queued_tokens: int = 4_000_000
    answer_numbers: int = 2_000_000

    def check_texts(self, texts: Sequence[str], repeated: int = 0) -> None:
        """Refuse too many texts, or too many characters of all together. `characters` is checked text by text.

        `repeated`: the characters of the task, which goes with each query. Raises InputError.
        """
        if len(texts) > self.texts:
            raise InputError(
                f"the request has {len(texts):,} texts, more than the {self.texts:,} of E5_MAX_TEXTS: "
                "send them in several requests"
            )
        total, most = repeated + sum(map(len, texts)), CHARACTERS_PER_TOKEN * self.request_tokens
        if total > most:
            what = "the texts and the task of each query" if repeated else "the texts"
            raise InputError(
                f"{what} have {total:,} characters together, more than the {most:,} that "
                f"E5_MAX_REQUEST_TOKENS={self.request_tokens} allows: send them in several requests"
            )

    def check_tokens(self, tokens: int) -> None:
        """Refuse more tokens than one request may have. Raises InputError."""
        if tokens > self.request_tokens:
            raise InputError(
                f"the texts have {tokens:,} tokens together, more than the {self.request_tokens:,} of "
                "E5_MAX_REQUEST_TOKENS: send them in several requests"
            )

    def check_answer(self, queries: int, documents: int, dimensions: int, base64: bool) -> None:
        """Refuse an answer of more JSON numbers than a server can write without a pause. Raises InputError."""
        floats = 0 if base64 else (queries + documents) * dimensions
        numbers = floats + queries * documents
        if numbers > self.answer_numbers:
            cure = "send fewer texts" + ("" if base64 else ", or ask for encoding_format=base64")
            raise InputError(
                f"the answer would have {numbers:,} numbers ({floats:,} of vectors, {queries * documents:,} scores), "
                f"more than the {self.answer_numbers:,} of E5_MAX_ANSWER_NUMBERS: {cure}"
            )
