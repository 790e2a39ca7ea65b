"""Random text from a grammar of named rules."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Grammar:
    """Each rule's alternatives, and a pattern that finds rule names in text."""

    alternatives: dict[str, tuple[str, ...]]
    names: re.Pattern[str]

    @classmethod
    def parse(cls, rules: Mapping[str, str]) -> "Grammar":
        """`rules`: name → alternatives separated by "|". Names are in capitals; NAMEs is the plural of NAME."""
        names = "|".join(sorted(rules, key=len, reverse=True))
        pattern = re.compile(rf"\b(?:{names})(?=s?\b)")
        return cls({name: tuple(text.split("|")) for name, text in rules.items()}, pattern)

    def expand(self, name: str, generator: random.Random) -> str:
        """One random text for the rule `name`, with all names in it expanded."""
        text = generator.choice(self.alternatives[name])
        return self.names.sub(lambda match: self.expand(match[0], generator), text)


def capitalize(text: str) -> str:
    """Start with a capital letter, and turn "a" into "an" before a vowel."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]
