"""Weights: the layouts of a folder, what counts as complete, and the lookup; downloads are in test_fetch.py."""

from pathlib import Path

import pytest
from safetensors.numpy import save

from e5 import catalog
from e5.errors import SettingsError, WeightsError
from e5.weights.files import LocalWeights
from e5.weights.locate import locate
from tests.hub import TOKENIZER, adapter, as_json, encoder, pickled, sharded, tensors, under, write

SMALL = catalog.get("e5-small")
FLAGSHIP = catalog.get(catalog.FLAGSHIP)


def flagship_folder(folder: Path) -> Path:
    return write(folder, under("base", sharded("mistral", 10, 2) | TOKENIZER) | under("adapter", adapter()))


# --- folders: layout, completeness -----------------------------------------------------------------------------------


def test_an_adapter_folder_is_found_by_its_layout(tmp_path: Path) -> None:
    folder = flagship_folder(tmp_path)
    base = folder / "base"
    expected = LocalWeights("adapter", base, base / "tokenizer.json", folder / "adapter")
    assert locate(FLAGSHIP, folder) == expected


def test_a_merged_folder_of_the_flagship_is_found_by_its_layout(tmp_path: Path) -> None:
    folder = write(tmp_path, sharded("mistral", 1, 2) | TOKENIZER)
    assert locate(FLAGSHIP, folder) == LocalWeights("merged", folder, folder / "tokenizer.json", None)


def test_an_encoder_folder_is_its_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, encoder())
    assert locate(SMALL, folder) == LocalWeights("merged", folder, folder / "tokenizer.json", None)


def test_an_adapter_may_be_a_bin_file(tmp_path: Path) -> None:
    folder = flagship_folder(tmp_path)
    (folder / "adapter/adapter_model.safetensors").unlink()
    write(folder, {"adapter/adapter_model.bin": pickled()})
    assert locate(FLAGSHIP, folder).adapter == folder / "adapter"


def test_a_checkpoint_may_not_be_a_bin_file(tmp_path: Path) -> None:
    folder = write(tmp_path, encoder() | {"pytorch_model.bin": pickled()})
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors .* is missing"):
        locate(SMALL, folder)


@pytest.mark.parametrize("cut", [1, 1000, 299_990, 300_060])
def test_a_truncated_checkpoint_is_named_with_its_sizes(tmp_path: Path, cut: int) -> None:
    folder = write(tmp_path, encoder())
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(WeightsError) as error:
        locate(SMALL, folder)
    assert str(path) in str(error.value) and str(len(whole) - cut) in str(error.value)
    if cut < 299_999:  # beyond that the header, which says how long the file should be, is cut as well
        assert f"expected {len(whole)} bytes" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "be'),
        ("config.json", b'["bert"]'),
        ("config.json", b""),
        ("config.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b'{"version"'),
        ("model.safetensors", b""),
        ("model.safetensors", bytes(1000)),
        ("model.safetensors", b"\xff" * 1000),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("model.safetensors", (9).to_bytes(8, "little") + b"[1, 2, 3]"),
        ("model.safetensors", (13).to_bytes(8, "little") + b'{"w": "else"}'),
        ("model.safetensors", tensors(1) + b"more"),
        ("model.safetensors", save({})),
    ],
)
def test_a_broken_file_in_a_users_folder_is_refused_and_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write(tmp_path, encoder() | {name: content})
    with pytest.raises(WeightsError) as error:
        locate(SMALL, folder)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "base/config.json",
        "base/tokenizer.json",
        "base/model.safetensors.index.json",
        "base/model-00002-of-00002.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = flagship_folder(tmp_path)
    (folder / name).unlink()
    with pytest.raises(WeightsError) as error:
        locate(FLAGSHIP, folder)
    assert name.removesuffix(".index.json") in str(error.value) and "is missing" in str(error.value)


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(WeightsError) as error:
        locate(FLAGSHIP, tmp_path)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "adapter_config.json", "adapter_model"):
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_may_only_name_safetensors_beside_it(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, sharded("bert", 1, 2) | TOKENIZER)
    write(folder, {"model.safetensors.index.json": as_json({"weight_map": {"weight": name}})})
    with pytest.raises(WeightsError, match="not a safetensors file in the same folder"):
        locate(SMALL, folder)


def test_an_adapter_bin_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    folder = flagship_folder(tmp_path)
    (folder / "adapter/adapter_model.safetensors").unlink()
    write(folder, {"adapter/adapter_model.bin": b"\x80\x02}."})
    with pytest.raises(WeightsError, match=r"adapter_model\.bin is not a PyTorch file"):
        locate(FLAGSHIP, folder)


def test_a_folder_of_another_architecture_says_which_and_names_the_setting(tmp_path: Path) -> None:
    folder = write(tmp_path, encoder())
    with pytest.raises(WeightsError, match=r"model_type bert, not xlm-roberta: set E5_MODEL"):
        locate(catalog.get("multilingual-e5-base"), folder)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a folder"):
        locate(SMALL, tmp_path / "nothing")


def test_a_source_that_the_model_does_not_have_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="E5_SOURCE=adapter"):
        locate(SMALL, write(tmp_path, encoder()), source="adapter")


def test_a_folder_without_the_source_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        locate(FLAGSHIP, flagship_folder(tmp_path), source="merged")


def test_a_missing_embedded_model_says_that_the_clone_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="run from a complete clone"):
        locate(catalog.get(catalog.EMBEDDED), root=tmp_path)


def test_a_users_folder_comes_before_the_clones_and_never_falls_through(tmp_path: Path) -> None:
    ours = write(tmp_path / "weights" / SMALL.name, encoder())
    mine = write(tmp_path / "mine", encoder())
    assert locate(SMALL, mine, root=ours.parent).checkpoint == mine
    (mine / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"mine/tokenizer\.json is missing.*unset E5_WEIGHTS"):
        locate(SMALL, mine, root=ours.parent)
