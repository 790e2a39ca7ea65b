"""The models of the E5 family: their facts, and where to download their weights, pinned by commit.

Sources: the model cards, microsoft/unilm `e5/README.md` and mteb's model metadata. Revisions are commits of the
Hugging Face repositories. For local files see `e5.weights`, for tensors `e5.network`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from e5.errors import SettingsError

Pooling = Literal["last", "mean", "cls"]
PromptKind = Literal["instruct", "prefix"]
Source = Literal["adapter", "merged"]

FLAGSHIP = "e5-mistral-7b-instruct"
EMBEDDED = "e5-mistral-tiny"

SENTENCEPIECE_TOKENS = ("<s>", "</s>")
WORDPIECE_TOKENS = ("[CLS]", "[SEP]")

CHECKPOINT = ("model.safetensors", "model.safetensors.index.json")
"""Names of a checkpoint: the first that exists is used. An index lists the shards."""
ADAPTER_TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
"""Names of an adapter's tensors: the first that exists is used. `.bin` is read with weights_only."""


@dataclass(frozen=True)
class Part:
    """Files of one repository at one commit. Downloaded, they go to `folder` in the model's local folder.

    All of `files` are required, and the first of `one_of` that exists. Their names are relative to `subfolder`.
    `checksums`: the sha256 of LFS files, by name, as far as they are known. The hub must list the same ones.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    subfolder: str = ""
    folder: str = ""
    gated: bool = False
    checksums: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Model:
    """One model: prompt, pooling, limits, and the sources of its weights.

    `sources` maps a source's name to its parts, the default source first. `adapter`: base weights and an adapter,
    merged while loading; `merged`: one complete checkpoint. No parts: the weights are in this repository.
    `special_tokens`: the first and last token of every text, "" for none; `max_tokens` includes them. `architectures`:
    the model_type that config.json may have, the published one first.

    A model of the user's own (`e5.declaration`) may have no `special_tokens`: tokenizer.json says which. Its numbers
    are 0, but for `max_tokens`.
    """

    name: str
    architectures: tuple[str, ...]
    special_tokens: tuple[str, str] | None
    pooling: Pooling
    prompt: PromptKind
    max_tokens: int
    dimensions: int
    layers: int
    parameters: int
    license: str
    languages: str
    sources: tuple[tuple[Source, tuple[Part, ...]], ...]
    beir_ndcg10: float | None = None

    @property
    def architecture(self) -> str:
        return self.architectures[0]

    @property
    def default_source(self) -> Source:
        return self.sources[0][0]

    def parts(self, source: str) -> tuple[Part, ...]:
        """The parts of a source. Raises SettingsError if the model does not have it."""
        for name, parts in self.sources:
            if name == source:
                return parts
        available = ", ".join(name for name, _ in self.sources)
        raise SettingsError(f"E5_SOURCE={source}: {self.name} has no such source; it has: {available}")


# Sources: reports of people who downloaded the files at these commits. For multilingual-e5-small, the results of
# ZYK-Labs/ai-beacon's benchmark of 2026-10-01, and two more for the model; for multilingual-e5-base, the qualification
# report of Service Insight (issue 39, 2026-07-18), which used curl. Many projects report the same at later commits.
_CHECKSUMS = {
    "multilingual-e5-small": {
        "model.safetensors": "1a55775f53449dac10a2bcbc312469fac40b96d53198c407081a831f81c98477",
        "tokenizer.json": "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
    },
    "multilingual-e5-base": {
        "model.safetensors": "a18a44fad1d0b46ded15928144138cff1135d5cc8233bdd90be5f18822de09a7",
        "tokenizer.json": "62c24cdc13d4c9952d63718d6c9fa4c287974249e16b7ade6d5a85e7bbb75626",
    },
}


def _encoder(
    name: str,
    revision: str,
    architectures: str | tuple[str, ...],
    layers: int,
    dimensions: int,
    parameters: int,
    beir_ndcg10: float,
    *,
    license: str = "mit",
    prompt: PromptKind = "prefix",
) -> Model:
    files = ("config.json", "tokenizer.json")
    part = Part(f"intfloat/{name}", revision, files, CHECKPOINT, checksums=_CHECKSUMS.get(name, {}))
    multilingual = name.startswith("multilingual-")
    return Model(
        name=name,
        architectures=(architectures,) if isinstance(architectures, str) else architectures,
        special_tokens=SENTENCEPIECE_TOKENS if multilingual else WORDPIECE_TOKENS,
        pooling="mean",
        prompt=prompt,
        max_tokens=512,
        dimensions=dimensions,
        layers=layers,
        parameters=parameters,
        license=license,
        languages="100 languages" if multilingual else "English",
        sources=(("merged", (part,)),),
        beir_ndcg10=beir_ndcg10,
    )


_E5_MISTRAL = "intfloat/e5-mistral-7b-instruct"
_E5_MISTRAL_REVISION = "07163b72af1488142a360786df853f237b1a3ca1"

MODELS: tuple[Model, ...] = (
    Model(
        name=FLAGSHIP,
        architectures=("mistral",),
        special_tokens=SENTENCEPIECE_TOKENS,
        pooling="last",
        prompt="instruct",
        max_tokens=4096,
        dimensions=4096,
        layers=32,
        parameters=7_111_000_000,
        license="mit (adapter), apache-2.0 (base)",
        languages="English (some multilingual capability)",
        sources=(
            (
                "adapter",
                (
                    Part(
                        "mistralai/Mistral-7B-v0.1",
                        "27d67f1b5f57dc0953326b2601d68371d40ea8da",
                        (
                            "config.json",
                            "model.safetensors.index.json",
                            "model-00001-of-00002.safetensors",
                            "model-00002-of-00002.safetensors",
                        ),
                        folder="base",
                        gated=True,
                    ),
                    Part(_E5_MISTRAL, _E5_MISTRAL_REVISION, ("tokenizer.json",), folder="base"),
                    Part(
                        _E5_MISTRAL,
                        _E5_MISTRAL_REVISION,
                        ("adapter_config.json",),
                        ADAPTER_TENSORS,
                        subfolder="lora",
                        folder="adapter",
                    ),
                ),
            ),
            ("merged", (Part(_E5_MISTRAL, _E5_MISTRAL_REVISION, ("config.json", "tokenizer.json"), CHECKPOINT),)),
        ),
        beir_ndcg10=56.9,
    ),
    _encoder("e5-small", "e272f3049e853b47cb5ca3952268c6662abda68f", "bert", 12, 384, 33_000_000, 46.0),
    _encoder(
        "e5-base", "b533fe4636f4a2507c08ddab40644d20b0006d6a", "bert", 12, 768, 109_000_000, 48.8, license="apache-2.0"
    ),
    _encoder(
        "e5-large",
        "4dc6d853a804b9c8886ede6dda8a073b7dc08a81",
        "bert",
        24,
        1024,
        335_000_000,
        50.0,
        license="apache-2.0",
    ),
    _encoder("e5-small-v2", "dca8b1a9dae0d4575df2bf423a5edb485a431236", "bert", 12, 384, 33_000_000, 49.0),
    _encoder("e5-base-v2", "1c644c92ad3ba1efdad3f1451a637716616a20e8", "bert", 12, 768, 109_000_000, 50.3),
    _encoder("e5-large-v2", "b322e09026e4ea05f42beadf4d661fb4e101d311", "bert", 24, 1024, 335_000_000, 50.6),
    # Based on Multilingual-MiniLM: a BERT network (positions from 0) with XLM-R's tokenizer (elastic/eland #625).
    _encoder(
        "multilingual-e5-small",
        "fd1525a9fd15316a2d503bf26ab031a61d056e98",
        ("bert", "xlm-roberta"),
        12,
        384,
        118_000_000,
        46.6,
    ),
    _encoder(
        "multilingual-e5-base", "d13f1b27baf31030b7fd040960d60d909913633f", "xlm-roberta", 12, 768, 278_000_000, 48.9
    ),
    _encoder(
        "multilingual-e5-large", "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb", "xlm-roberta", 24, 1024, 560_000_000, 51.4
    ),
    _encoder(
        "multilingual-e5-large-instruct",
        "baa7be480a7de1539afce709c8f13f833a510e0a",
        "xlm-roberta",
        24,
        1024,
        560_000_000,
        52.5,
        prompt="instruct",
    ),
    Model(
        name=EMBEDDED,
        architectures=("mistral",),
        special_tokens=SENTENCEPIECE_TOKENS,
        pooling="last",
        prompt="instruct",
        max_tokens=4096,
        dimensions=256,
        layers=3,
        parameters=11_100_000,
        license="apache-2.0",
        languages="English",
        sources=(("adapter", ()), ("merged", ())),
    ),
)


def names() -> tuple[str, ...]:
    """All model names, the flagship first, the embedded model last."""
    return tuple(model.name for model in MODELS)


def get(name: str) -> Model:
    """The model with this name. Raises SettingsError for an unknown name, with the list of names."""
    for model in MODELS:
        if model.name == name:
            return model
    raise SettingsError(f"E5_MODEL={name} is not one of the possible values: {', '.join(names())}")
