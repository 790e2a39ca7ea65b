"""The catalog's facts, copied by hand from the model cards and mteb."""

import re

import pytest

from e5 import catalog
from e5.errors import SettingsError


def test_family_is_complete() -> None:
    assert catalog.names() == (
        "e5-mistral-7b-instruct",
        "e5-small",
        "e5-base",
        "e5-large",
        "e5-small-v2",
        "e5-base-v2",
        "e5-large-v2",
        "multilingual-e5-small",
        "multilingual-e5-base",
        "multilingual-e5-large",
        "multilingual-e5-large-instruct",
        "e5-mistral-tiny",
    )


def test_every_part_is_pinned_to_a_commit() -> None:
    parts = [part for model in catalog.MODELS for _, parts in model.sources for part in parts]
    assert parts
    for part in parts:
        assert re.fullmatch("[0-9a-f]{40}", part.revision), part
        assert part.files and all(not name.endswith((".bin", ".pt")) for name in part.files)
    revisions = {(part.repo, part.revision) for part in parts}
    assert len({repo for repo, _ in revisions}) == len(revisions), "one repository at two commits"


def test_flagship_sources_are_base_with_adapter_and_merged() -> None:
    model = catalog.get("e5-mistral-7b-instruct")
    assert model.default_source == "adapter"
    base, tokenizer, adapter = model.parts("adapter")
    assert (base.repo, base.revision[:8], base.gated) == ("mistralai/Mistral-7B-v0.1", "27d67f1b", True)
    assert (adapter.repo, adapter.revision[:8]) == ("intfloat/e5-mistral-7b-instruct", "07163b72")
    assert (adapter.subfolder, adapter.files) == ("lora", ("adapter_config.json",))
    assert adapter.one_of == ("adapter_model.safetensors", "adapter_model.bin")
    assert (tokenizer.repo, tokenizer.files, tokenizer.folder) == (adapter.repo, ("tokenizer.json",), "base")
    (merged,) = model.parts("merged")
    assert (merged.repo, merged.revision) == (adapter.repo, adapter.revision)
    assert (model.pooling, model.prompt, model.max_tokens, model.dimensions) == ("last", "instruct", 4096, 4096)


@pytest.mark.parametrize(
    ("name", "revision", "architecture", "prompt", "dimensions", "license"),
    [
        ("e5-small", "e272f3049e853b47cb5ca3952268c6662abda68f", "bert", "prefix", 384, "mit"),
        ("e5-base", "b533fe4636f4a2507c08ddab40644d20b0006d6a", "bert", "prefix", 768, "apache-2.0"),
        ("e5-large", "4dc6d853a804b9c8886ede6dda8a073b7dc08a81", "bert", "prefix", 1024, "apache-2.0"),
        ("e5-small-v2", "dca8b1a9dae0d4575df2bf423a5edb485a431236", "bert", "prefix", 384, "mit"),
        ("e5-base-v2", "1c644c92ad3ba1efdad3f1451a637716616a20e8", "bert", "prefix", 768, "mit"),
        ("e5-large-v2", "b322e09026e4ea05f42beadf4d661fb4e101d311", "bert", "prefix", 1024, "mit"),
        ("multilingual-e5-small", "fd1525a9fd15316a2d503bf26ab031a61d056e98", "bert", "prefix", 384, "mit"),
        ("multilingual-e5-base", "d13f1b27baf31030b7fd040960d60d909913633f", "xlm-roberta", "prefix", 768, "mit"),
        ("multilingual-e5-large", "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb", "xlm-roberta", "prefix", 1024, "mit"),
        (
            "multilingual-e5-large-instruct",
            "baa7be480a7de1539afce709c8f13f833a510e0a",
            "xlm-roberta",
            "instruct",
            1024,
            "mit",
        ),
    ],
)
def test_encoders(name: str, revision: str, architecture: str, prompt: str, dimensions: int, license: str) -> None:
    model = catalog.get(name)
    (part,) = model.parts("merged")
    assert (part.repo, part.revision) == (f"intfloat/{name}", revision)
    assert (model.architecture, model.prompt, model.dimensions) == (architecture, prompt, dimensions)
    assert (model.pooling, model.max_tokens, model.license) == ("mean", 512, license)


def test_special_tokens_are_those_of_the_tokenizer_not_of_the_network() -> None:
    small = catalog.get("multilingual-e5-small")
    assert (small.architectures, small.special_tokens) == (("bert", "xlm-roberta"), ("<s>", "</s>"))
    assert catalog.get("multilingual-e5-large-instruct").special_tokens == ("<s>", "</s>")
    assert catalog.get("e5-mistral-7b-instruct").special_tokens == ("<s>", "</s>")
    assert catalog.get("e5-small").special_tokens == ("[CLS]", "[SEP]")


def test_unknown_names_and_sources_are_rejected_with_the_valid_ones() -> None:
    with pytest.raises(SettingsError, match=r"E5_MODEL=e5-huge .*e5-mistral-7b-instruct, e5-small,"):
        catalog.get("e5-huge")
    with pytest.raises(SettingsError, match=r"E5_SOURCE=adapter: e5-small has no such source; it has: merged"):
        catalog.get("e5-small").parts("adapter")
