"""The vectors that a server should give for the crafted texts, and those that known mistakes would give, as plain data.

`compute` makes them from a model's weights, `fixtures` writes and reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from e5 import catalog
from e5.catalog import Pooling, PromptKind
from e5.vectors import Vectors
from evaluation.server_check.mistakes import Candidate
from evaluation.server_check.texts import BATCHED, COMPARED, EMOJI, Probe, long_probe


@dataclass(frozen=True)
class Facts:
    """What the checks know of a model. `special_tokens`: None if tokenizer.json decides. `dimensions`: 0 if unknown."""

    model: str
    prompt: PromptKind
    pooling: Pooling
    max_tokens: int
    dimensions: int
    special_tokens: tuple[str, str] | None

    @classmethod
    def of(cls, model: catalog.Model, dimensions: int = 0) -> "Facts":
        size = dimensions or model.dimensions
        return cls(model.name, model.prompt, model.pooling, model.max_tokens, size, model.special_tokens)


@dataclass(frozen=True)
class ExpectedText:
    """One crafted text. `vectors`: unit vectors float32 [D] by candidate, always with () for the right one.

    `norm`: the right vector's length before it was scaled. `tokens`: the right number of tokens.
    """

    probe: Probe
    norm: float
    tokens: int
    vectors: Mapping[Candidate, Vectors]

    @property
    def right(self) -> Vectors:
        return self.vectors[()]


@dataclass(frozen=True)
class Expected:
    """Expected vectors of one model by the name of the text. `origin`: where they come from, for people."""

    facts: Facts
    origin: str
    dtype: str
    texts: Mapping[str, ExpectedText]


def probes(facts: Facts) -> tuple[Probe, ...]:
    """The texts that have expected vectors."""
    return (*COMPARED, *BATCHED, EMOJI, long_probe(facts.max_tokens))
