"""Limits of one request and of the queue, which bound a server's memory.

The defaults allow what clients send on purpose (OpenAI's embeddings API also takes 2,048 texts a request) and reject
requests that would occupy a server for minutes. Only servers check them; the library has no limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from e5.errors import InputError

CHARACTERS_PER_TOKEN = 20
"""Character budget per token of the request limit. English averages 4–5; truncated text still counts."""
MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN = 1_000_000, 250
"""Default of E5_MAX_CHARACTERS: the smaller of the first, and the second for each token that the model reads of a text.

For an encoder's 512 tokens that is 128,000. One million characters can keep XLM-R's tokenizer busy for 5 s, and take
1.7 GB, because it normalizes and splits the whole text before it is cut.
"""


@dataclass(frozen=True)
class Limits:
    """The values of E5_MAX_TEXTS and so on (`e5.settings.LIMITS`).

    `characters`: None means no limit here; `Settings` replaces it by the model's default. `file_seconds`: for the input
    `file`; Replicate ends a prediction after 30 minutes. `file_bytes`: of the vectors of a file.
    """

    texts: int = 2_048
    characters: int | None = None
    request_tokens: int = 1_000_000
    queued_tokens: int = 4_000_000
    answer_numbers: int = 2_000_000
    file_seconds: int = 1_500
    file_bytes: int = 2**26

    def check_texts(self, texts: Sequence[str], repeated: int = 0) -> None:
        """Raise InputError for too many texts, or too many characters in total.

        `repeated`: characters of the task, counted once for each query. `e5.inputs` checks the length of single texts.
        """
        if len(texts) > self.texts:
            raise InputError(
                f"the request has {len(texts):,} texts, more than the {self.texts:,} of E5_MAX_TEXTS: "
                "send them in several requests"
            )
        total, max_total = repeated + sum(map(len, texts)), CHARACTERS_PER_TOKEN * self.request_tokens
        if total > max_total:
            counted = "the texts and the task of each query" if repeated else "the texts"
            raise InputError(
                f"{counted} have {total:,} characters together, more than the {max_total:,} that "
                f"E5_MAX_REQUEST_TOKENS={self.request_tokens} allows: send them in several requests"
            )

    def check_tokens(self, tokens: int) -> None:
        """Raise InputError for too many tokens in total."""
        if tokens > self.request_tokens:
            raise InputError(
                f"the texts have {tokens:,} tokens together, more than the {self.request_tokens:,} of "
                "E5_MAX_REQUEST_TOKENS: send them in several requests"
            )

    def check_token_ids(self, tokens: int) -> None:
        """Raise InputError for an answer of too many token ids, with a string for each."""
        if 2 * tokens > self.answer_numbers:
            raise InputError(
                f"the answer would have {2 * tokens:,} token ids and pieces, more than the {self.answer_numbers:,} of "
                "E5_MAX_ANSWER_NUMBERS: send fewer texts"
            )

    def check_answer(self, queries: int, documents: int, dimensions: int) -> None:
        """Raise InputError for an answer of so many JSON numbers that encoding it would block the server.

        `dimensions`: JSON numbers of a vector, 0 if it is returned as base64.
        """
        floats = (queries + documents) * dimensions
        numbers = floats + queries * documents
        if numbers > self.answer_numbers:
            cure = "send fewer texts" + (", or ask for encoding_format=base64" if dimensions else "")
            raise InputError(
                f"the answer would have {numbers:,} numbers ({floats:,} of vectors, {queries * documents:,} scores), "
                f"more than the {self.answer_numbers:,} of E5_MAX_ANSWER_NUMBERS: {cure}"
            )
