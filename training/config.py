"""What one would change of the embedded model, in one place; constants of a method stand beside its code."""

from dataclasses import asdict, dataclass, field
from typing import Any

from training.network import Shape


@dataclass(frozen=True)
class Config:
    """Sizes are those of the published model; tests train a far smaller one."""

    seed: int = 20261123
    shape: Shape = field(default_factory=Shape)

    # Text: how many texts are taken of each source at most, chosen at random.
    quotas: dict[str, int] = field(
        default_factory=lambda: {
            "definitions": 115_000,
            "entries": 190_000,
            "usages": 45_000,
            "packages": 110_000,
            "gcide": 230_000,
            "terms": 25_000,
            "fortunes": 27_000,
            "speeches": 24_000,
            "anarchism": 55_000,
            "handbook": 6_000,
            "gnome": 6_000,
            "office": 15_000,
            "manuals": 8_000,
            "sts": 10_000,
            "questions": 10_000,
            "names": 260_000,
            "everyday": 160_000,
        }
    )
    everyday: int = 170_000  # made by the grammar, before duplicates go
    names: int = 270_000  # made by another grammar
    variants: int = 360_000  # of the texts above, a word or a few changed
    most_words: int = 60
    longer_words: int = 180  # for one text in twenty
    most_tokens: int = 256

    # Static start: a bag of token vectors.
    static_rate: float = 5e-3
    static_texts: int = 2048
    static_epochs: int = 3

    # Base: the teacher's vectors of plain texts.
    base_steps: int = 5000
    base_rate: float = 5e-4
    base_warm_up: int = 300

    # Adapter: texts with instructions, beside plain ones.
    rank: int = 32
    alpha: int = 64
    adapter_steps: int = 2000
    adapter_rate: float = 2e-3
    adapter_warm_up: int = 100
    instructed: float = 0.6  # share of the texts
    lengthened: float = 0.5  # share of the texts that get others behind them
    lengthened_by: int = 3  # at most
    more_tokens: int = 33  # by which a batch's texts are longer on average: instructions, and other texts

    batch_tokens: int = 8192
    group: int = 8  # texts that lie near each other in the teacher's space come in groups, in one batch
    clusters: int = 8192
    relation_weight: float = 0.3  # of the distance between the batch's similarities and the teacher's
    temperature: float = 0.05
    decay: float = 0.01
    clip: float = 1.0
    save_every: int = 350

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


ADAPTER = {
    "rank",
    "alpha",
    "adapter_steps",
    "adapter_rate",
    "adapter_warm_up",
    "instructed",
    "lengthened",
    "lengthened_by",
    "more_tokens",
}
"""What no stage before the adapter depends on."""
