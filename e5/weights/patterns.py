"""Match the regular expressions of an adapter's configuration, which is untrusted, in bounded time.

Python's `re` backtracks: `(a+)+$` takes 2ⁿ steps for a name of n characters, without releasing the GIL. So the number
of ways in which a pattern can match is bounded from its text before it runs (`ways`), and the matches of one adapter
share MAX_STEPS. Not supported: inline flags, atomic groups, conditions and named back-references.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from e5.errors import WeightsError

MAX_STEPS = 1_000_000_000
"""Budget of an adapter. A step took 1 ns, for the worst pattern found 31 ns: seconds, at most half a minute. Lists of
names take no step, `.*\\.(q_proj|v_proj)` takes 4e5 for the flagship's 224 modules."""
MAX_CHARACTERS = 1000
"""Limit of one pattern."""
STEPS_PER_CHARACTER = 5000
"""Compiling a pattern and computing its ways take 5 to 7 µs per character, once."""
STEPS_PER_CALL = 1000

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:[:=!]|<[=!]|P<\w+>)|.", re.DOTALL)
_QUANTIFIER = re.compile(r"(?:([*+?])|\{(?!\})(\d*)(,?)(\d*)\})[?+]?")


class Patterns:
    """Patterns that may take MAX_STEPS together. `path`: the file that has them, for error messages."""

    def __init__(self, path: Path) -> None:
        self._path, self._steps = path, MAX_STEPS
        self._compiled = dict[str, re.Pattern[str]]()

    def compile(self, pattern: str, name: str) -> re.Pattern[str]:
        """`re.compile`, for one match against `name`.

        Raises WeightsError for an invalid pattern, and for one that may take too long.
        """
        try:
            if pattern not in self._compiled:
                if len(pattern) > MAX_CHARACTERS:
                    raise ValueError(f"{len(pattern)} characters, the limit is {MAX_CHARACTERS}")
                self._compiled[pattern] = re.compile(pattern)
                self._steps -= len(pattern) * STEPS_PER_CHARACTER
            zero_width = sum(map(pattern.count, "(\\^$"))  # they take steps, but no character of the name
            self._steps -= ways(pattern, len(name)) * (len(name) + zero_width) + STEPS_PER_CALL
            if self._steps < 0:
                raise ValueError("it may take too long to match")
        except (re.error, ValueError, RecursionError, OverflowError) as error:
            raise WeightsError(
                f"{self._path} has a pattern that cannot be used ({error!s:.100}): {pattern!r:.200}; "
                "name the modules in a list instead, or merge the adapter with peft and use the result"
            ) from error
        return self._compiled[pattern]


@lru_cache(10_000)
def ways(pattern: str, length: int) -> int:
    """An upper bound of the ways in which a valid pattern can match the start of a text; MAX_STEPS + 1 for any more.

    In a sequence the ways multiply, alternatives add up, and of literal alternatives at most those can match that begin
    alike. k unbounded quantifiers in a sequence share the text in C(length + k, k) ways. Raises ValueError for syntax
    that is not supported.
    """
    groups, position = [_Group()], 0
    while token := _TOKEN.match(pattern, position):
        symbol, position = token[0], token.end()
        if symbol == "(" and pattern.startswith("?", position):
            raise ValueError(f"({pattern[position : position + 2]} is not supported")
        if symbol.startswith("("):
            groups.append(_Group())
            continue
        if symbol == "|":
            groups[-1].end_branch()
            continue
        count = groups.pop().total() if symbol == ")" else 1
        escaped = symbol[0] == "\\" and not symbol[1].isalnum()
        text = symbol[-1] if escaped or (len(symbol) == 1 and symbol not in ").^$") else None
        group = groups[-1]
        if quantifier := _QUANTIFIER.match(pattern, position):
            position, text = quantifier.end(), None
            low, high = _repetitions(quantifier, length)
            if count == 1 and low < high == length:
                group.unbounded += 1
                group.count = group.count * (length + group.unbounded) // group.unbounded
            else:
                most = max(low, high + (high == length))  # the last repetition may be empty
                count = min(count, MAX_STEPS + 1) ** min(most, 64) * (max(high - low, 0) + 1)
        group.count = min(group.count * count, MAX_STEPS + 1)
        group.text = None if text is None or group.text is None else group.text + text
    return groups[0].total()


def _repetitions(quantifier: re.Match[str], length: int) -> tuple[int, int]:
    """The least number of repetitions, and the greatest that can matter."""
    symbol, low, comma, high = quantifier.groups()
    if symbol:
        return int(symbol == "+"), 1 if symbol == "?" else length
    if not comma:
        return int(low), int(low)
    return int(low or 0), min(int(high), length) if high else length


@dataclass
class _Group:
    """A group: its finished branches, and the one that is being read (`text`: the branch itself if it is literal)."""

    literals: list[str] = field(default_factory=list)
    others: int = 0
    count: int = 1
    unbounded: int = 0
    text: str | None = ""

    def end_branch(self) -> None:
        if self.text is None:
            self.others += self.count
        else:
            self.literals.append(self.text)
        self.count, self.unbounded, self.text = 1, 0, ""

    def total(self) -> int:
        """The ways of the whole group, which ends here."""
        self.end_branch()
        alike = max((sum(map(text.startswith, self.literals)) for text in self.literals), default=0)
        return min(alike + self.others, MAX_STEPS + 1)
