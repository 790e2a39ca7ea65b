"""Models of the user's own: what e5.json may say, and that nothing is guessed without it."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as TokenizerFile

from e5 import Embedder, SettingsError, catalog
from e5.declaration import EXAMPLE, declared
from e5.errors import WeightsError
from e5.network.encoder import Encoder
from e5.settings import Settings
from e5.weights.locate import locate
from tests.reference import Reference, relative_l2

VALID = {"name": "my-e5", "prompt": "instruct", "pooling": "mean", "max_tokens": 256}
TEXTS = ["how tall is the tower?", "soup with carrots and the guideline of proteins"]


@pytest.fixture
def folder(bert_folder: Path, tmp_path: Path) -> Path:
    copy: Path = shutil.copytree(bert_folder, tmp_path / "folder")
    return declare(copy)


def declare(folder: Path, **changes: object) -> Path:
    keys = VALID | changes
    (folder / "e5.json").write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))
    return folder


def test_declared_bert_runs_in_the_loop(folder: Path) -> None:
    embedder = Embedder.load(weights=folder, dtype="float32", device="cpu")
    assert isinstance(embedder.packed.network, Encoder)
    assert (embedder.model.name, embedder.tokenizer.max_tokens, embedder.uses_task) == ("my-e5", 256, True)
    want = Reference.load(folder, 256).embed([f"Instruct: t\nQuery: {text}" for text in TEXTS])
    assert relative_l2(embedder.embed_queries(TEXTS, task="t"), want) < 1e-5
    assert Embedder.load("my-e5", folder, device="cpu").model == embedder.model
    declare(folder, prompt="prefix")
    embedder = Embedder.load(weights=folder, dtype="float32", device="cpu")
    want = Reference.load(folder, 256).embed([f"passage: {text}" for text in TEXTS])
    assert relative_l2(embedder.embed_documents(TEXTS), want) < 1e-5


def test_settings_of_a_declared_model(folder: Path) -> None:
    for model in ("", "my-e5"):
        settings = Settings.from_environment({"E5_WEIGHTS": str(folder), "E5_MODEL": model})
        assert settings.resolve().name == "my-e5" and settings.limits.characters == 250 * 256
    with pytest.raises(
        SettingsError, match=r"E5_MODEL=e5-base, but .*e5\.json declares the model my-e5: set E5_MODEL to"
    ):
        Settings("e5-base", folder)
    (folder / "e5.json").unlink()
    with pytest.raises(SettingsError, match="E5_MODEL=my-e5 is not one of the possible values"):
        Settings("my-e5", folder)
    assert Settings("e5-small", folder).resolve() == catalog.get("e5-small")


def test_model_outside_the_catalog_must_be_declared(folder: Path) -> None:
    (folder / "e5.json").unlink()
    (folder / "config.json").write_text('{"model_type": "modernbert"}')
    for name in ("e5-small", catalog.FLAGSHIP):
        with pytest.raises(
            WeightsError, match=r"has model_type modernbert, not .*declare a model of your own in e5\.json"
        ):
            locate(catalog.get(name), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "has no name: name is a name that no model"),
        ({"name": "e5-small"}, "has name='e5-small': name is a name that no model of the catalog has"),
        ({"name": " "}, "has name=' '"),
        ({"name": ["e5"]}, "has name="),
        ({"prompt": None}, "has no prompt: prompt is instruct or prefix"),
        ({"prompt": "query: "}, "has prompt='query: ': prompt is instruct or prefix"),
        ({"prompt": {}}, "has prompt="),
        ({"pooling": None}, "has no pooling: pooling is last or mean or cls"),
        ({"pooling": "max"}, "has pooling='max'"),
        ({"max_tokens": None}, "has no max_tokens: max_tokens is a whole number, 64 or more"),
        ({"max_tokens": 63}, "has max_tokens=63"),
        ({"max_tokens": 512.0}, "has max_tokens=512.0"),
        ({"max_tokens": True}, "has max_tokens=True"),
        ({"special_tokens": "[CLS]"}, "has special_tokens="),
        ({"special_tokens": ["[CLS]"]}, "has special_tokens="),
        ({"special_tokens": ["[CLS]", 3]}, "has special_tokens="),
        ({"poolign": "mean"}, "has the key 'poolign', which is not one of name, prompt, pooling"),
    ],
)
def test_declaration_that_is_not_valid_is_an_error(changes: dict[str, object], message: str, folder: Path) -> None:
    declare(folder, **changes)
    with pytest.raises(SettingsError) as caught:
        Settings(weights=folder)
    assert message in str(caught.value) and str(folder / "e5.json") in str(caught.value)
    assert "poolign" in changes or EXAMPLE in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\xff"], ids=range(5))
def test_declaration_that_is_not_json_is_an_error(content: str, folder: Path) -> None:
    (folder / "e5.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"e5\.json .*: correct it"):
        declared(folder)


# --- special tokens --------------------------------------------------------------------------------------------------


def without_post_processor(folder: Path) -> None:
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    file["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(file), "utf-8")


def ids(folder: Path, text: str) -> list[int]:
    encoded: list[int] = Embedder.load(weights=folder, device="cpu").tokenizer.encode([text]).ids[0].tolist()
    return encoded


def test_special_tokens_are_those_of_the_tokenizer_or_the_declared_ones(folder: Path) -> None:
    text = "how much protein"
    want = TokenizerFile.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert ids(folder, text) == want and len(want) > 2
    without_post_processor(folder)
    with pytest.raises(
        WeightsError, match=r"adds no special token at the start of a text: declare \"special_tokens\" in"
    ):
        ids(folder, text)
    for declared_tokens, expected in (
        (["[CLS]", "[SEP]"], want),
        (["", "[SEP]"], want[1:]),
        (["", ""], want[1:-1]),
    ):
        declare(folder, special_tokens=declared_tokens)
        assert ids(folder, text) == expected
        assert len(ids(folder, "a " * 300)) == 256, "max_tokens includes them"
    declare(folder, special_tokens=["<s>", "</s>"])
    with pytest.raises(WeightsError, match="has no token <s>"):
        ids(folder, text)


def test_tokenizer_without_a_token_for_a_letter_is_refused(folder: Path) -> None:
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    file["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    with pytest.raises(WeightsError, match="adds no special token at the start of a text"):
        ids(folder, "soup")


def test_file_that_adds_no_last_token_is_refused(decoder_folder: Path, tmp_path: Path) -> None:
    """e5-mistral's own file: without `</s>` the last token is one of the text's words."""
    base = declare(shutil.copytree(decoder_folder / "base", tmp_path / "base"), pooling="last")
    with pytest.raises(WeightsError, match="adds no special token at the end of a text"):
        Embedder.load(weights=base, device="cpu")
    declare(base, pooling="last", special_tokens=["<s>", "</s>"])
    assert ids(base, "soup")[-1] == 2 and ids(base, "soup")[0] == 1


# --- files of sentence-transformers ----------------------------------------------------------------------------------


def modules(folder: Path, *kinds: str, **pooling: object) -> None:
    content = [{"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"x.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(content))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, **pooling}))


@pytest.mark.parametrize(
    ("pooling", "stored"),
    [
        ({"pooling_mode": "mean"}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": ["mean", "max"]}, "mean+max"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean", "include_prompt": False}, "mean without the prompt"),
    ],
)
def test_pooling_of_sentence_transformers_must_be_the_declared_one(
    pooling: dict[str, object], stored: str | None, folder: Path
) -> None:
    modules(folder, "Transformer", "Pooling", "Normalize", **pooling)
    if stored is None:
        assert declared(folder) is not None
    else:
        with pytest.raises(SettingsError, match=f"has pooling='mean', but .* says {stored!r}".replace("+", r"\+")):
            declared(folder)


def test_lowercased_texts_are_refused(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    assert declared(folder) is not None
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": true}')
    with pytest.raises(SettingsError, match="has do_lower_case, which is not supported"):
        declared(folder)


@pytest.mark.parametrize("path", ["..", "", "../1_Pooling", "/etc"])
def test_pooling_is_read_in_the_folder_only(path: str, folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Pooling"}]))
    with pytest.raises(SettingsError, match="for its Pooling: correct it"):
        declared(folder)


def test_module_that_is_not_computed_is_refused(folder: Path) -> None:
    modules(folder, "Transformer", "Pooling", "Dense", pooling_mode="mean")
    with pytest.raises(SettingsError, match="lists the module Dense, which is not supported"):
        declared(folder)


def test_files_that_sentence_transformers_writes_agree(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    transformer = Transformer(str(folder))
    SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean")]).save(str(folder / "saved"))
    assert declared(declare(folder / "saved")) is not None
    assert Embedder.load(weights=folder / "saved", dtype="float32", device="cpu").dimensions == 32
