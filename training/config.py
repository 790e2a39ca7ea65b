"""Hyperparameters of the embedded model. Constants of a single method are next to its code."""

from dataclasses import asdict, dataclass, field
from typing import Any

from training.network import ModelConfig


@dataclass(frozen=True)
class Config:
    """The published model's values. Tests train a far smaller model."""

    seed: int = 20261123
    model: ModelConfig = field(default_factory=ModelConfig)

    # Text. Each source contributes at most this many texts, chosen at random.
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
    everyday_texts: int = 170_000  # generated, before duplicates are removed
    name_texts: int = 270_000
    variants: int = 360_000
    max_words: int = 60
    max_words_long: int = 180  # for one text in twenty
    max_tokens: int = 256

    # Static token embeddings, the starting point of the base.
    static_learning_rate: float = 5e-3
    static_batch_size: int = 2048  # texts
    static_epochs: int = 3

    # Base.
    base_steps: int = 5000
    base_learning_rate: float = 5e-4
    base_warmup_steps: int = 300

    # Adapter.
    lora_rank: int = 32
    lora_alpha: int = 64
    adapter_steps: int = 2000
    adapter_learning_rate: float = 2e-3
    adapter_warmup_steps: int = 100
    instruction_probability: float = 0.6
    concatenation_probability: float = 0.5
    max_concatenated: int = 3  # texts appended to one
    extra_tokens: int = 33  # mean growth of a text through its instruction and appended texts

    # Both.
    batch_tokens: int = 8192
    group_size: int = 8  # texts of one cluster that go into a batch together
    num_clusters: int = 8192
    similarity_loss_weight: float = 0.3
    temperature: float = 0.05  # of the similarity loss
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_steps: int = 350

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


ADAPTER_FIELDS = {
    "lora_rank", "lora_alpha", "adapter_steps", "adapter_learning_rate", "adapter_warmup_steps",
    "instruction_probability", "concatenation_probability", "max_concatenated", "extra_tokens",
}  # fmt: skip
"""Fields that only the adapter stage reads."""
