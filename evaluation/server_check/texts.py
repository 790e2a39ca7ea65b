"""The crafted texts: for vectors, for batches, for input that servers fail on, and long ones for truncation."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

TASK = "Retrieve duplicate questions"
"""Not the default task, so that a server that ignores the request's task gives another vector. Of e5-mistral-tiny, by
1 - cosine = 3e-4; bfloat16 moves it by 5e-5."""


@dataclass(frozen=True)
class Probe:
    """A text and the side that it is embedded for."""

    name: str
    side: Literal["query", "document"]
    text: str


# Capital letters, line breaks, digits and letters beyond ASCII: texts that lower-casing and cleaning change.
COMPARED = (
    Probe("document 1", "document", "The Tower is 300 m high.\nIt opened in 1889."),
    Probe("document 2", "document", "Crème brûlée: CREAM, eggs and burnt sugar"),
    Probe("query 1", "query", "How TALL is the\nEiffel Tower?"),
    Probe("query 2", "query", "Opening hours in München"),
)
"""For these, the vectors of known mistakes are computed, too."""

BATCHED = (
    Probe("word", "document", "towers"),
    Probe("sentence", "document", "A lift takes visitors to the second floor."),
    Probe("Chinese", "document", "埃菲尔铁塔位于法国巴黎，高三百米。"),
    Probe("Russian", "document", "Башня построена к Всемирной выставке."),
    Probe("code", "document", "def height(tower): return tower['height_m'] * 3.28084"),
    Probe("paragraph", "document", "Soup needs time, salt and a pot that is large enough. " * 5),
)
"""Of very different lengths, so that a batch needs padding."""

EMPTY = Probe("empty text", "document", "")
SPACE = Probe("white space", "document", " \n\t ")
NUL = Probe("NUL character", "document", "before\0after")
EMOJI = Probe("emoji", "document", "Great 👍🏽, said the 👩‍👩‍👧‍👦 under the 🏳️‍🌈")
CONTROL = Probe("control characters", "document", "a\x01b\x1b[31mc\x7fd\u202ee\ufefff\u2028g")
ODD = (EMPTY, SPACE, NUL, EMOJI, CONTROL)

WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "that", "with")
"""One token each for every tokenizer of the family."""
TAILS = (
    " ".join(["tower", "high", "city", "open", "water", "new", "year", "day"] * 2),
    " ".join(["music", "old", "money", "red", "war", "night", "food", "law"] * 2),
)
"""Two endings of 16 words: vectors of texts that differ only in them show whether a server reads that far."""


def words(count: int) -> str:
    """A text of `count` words, each of them one token."""
    return " ".join(islice(cycle(WORDS), count))


def long_probe(max_tokens: int) -> Probe:
    """A text that is an eighth and 32 tokens longer than the model reads."""
    return Probe("long", "document", f"{TAILS[0]} {words(max_tokens + max_tokens // 8)} {TAILS[1]}")
