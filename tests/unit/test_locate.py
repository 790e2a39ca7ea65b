"""`locate`: folder layouts, completeness checks and lookup order. Downloads are in test_fetch.py."""

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


NESTED = b"[" * 100_000


def flagship_folder(folder: Path) -> Path:
    return write(folder, under("base", sharded("mistral", 10, 2) | TOKENIZER) | under("adapter", adapter()))


def test_folder_with_base_and_adapter_is_an_adapter_source(tmp_path: Path) -> None:
    folder = flagship_folder(tmp_path)
    base = folder / "base"
    expected = LocalWeights("adapter", base, base / "tokenizer.json", folder / "adapter")
    assert locate(FLAGSHIP, folder) == expected


def test_flagship_folder_with_one_checkpoint_is_a_merged_source(tmp_path: Path) -> None:
    folder = write(tmp_path, sharded("mistral", 1, 2) | TOKENIZER)
    assert locate(FLAGSHIP, folder) == LocalWeights("merged", folder, folder / "tokenizer.json", None)


def test_encoder_folder_is_its_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, encoder())
    assert locate(SMALL, folder) == LocalWeights("merged", folder, folder / "tokenizer.json", None)


def test_adapter_may_be_a_bin_file(tmp_path: Path) -> None:
    folder = flagship_folder(tmp_path)
    (folder / "adapter/adapter_model.safetensors").unlink()
    write(folder, {"adapter/adapter_model.bin": pickled()})
    assert locate(FLAGSHIP, folder).adapter == folder / "adapter"


def test_checkpoint_may_not_be_a_bin_file(tmp_path: Path) -> None:
    folder = write(tmp_path, encoder() | {"pytorch_model.bin": pickled()})
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors .* is missing"):
        locate(SMALL, folder)


@pytest.mark.parametrize("cut", [1, 1000, 299_990, 300_060])
def test_error_for_a_truncated_checkpoint_has_path_and_sizes(tmp_path: Path, cut: int) -> None:
    folder = write(tmp_path, encoder())
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(WeightsError) as error:
        locate(SMALL, folder)
    assert str(path) in str(error.value) and str(len(whole) - cut) in str(error.value)
    if cut < 299_999:  # beyond that, the header with the expected size is truncated too
        assert f"expected {len(whole)} bytes" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "be'),
        ("config.json", b'["bert"]'),
        ("config.json", b""),
        ("config.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b'{"version"'),
        ("tokenizer.json", NESTED),
        ("config.json", NESTED),
        ("config.json", b'{"a":' * 100_000),
        ("config.json", b"1" * 10_000),
        ("model.safetensors", (100_000).to_bytes(8, "little") + NESTED),
        ("model.safetensors", (36).to_bytes(8, "little") + b'{"w":{"data_offsets":[0, Infinity]}} '),
        ("model.safetensors", (32).to_bytes(8, "little") + b'{"w":{"data_offsets":["0","1"]}}'),
        ("model.safetensors", (1 << 63).to_bytes(8, "little") + b"{}"),
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
def test_error_names_the_corrupt_file_of_a_users_folder(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write(tmp_path, encoder() | {name: content})
    with pytest.raises(WeightsError) as error:
        locate(SMALL, folder)
    assert str(folder / name) in str(error.value) and len(str(error.value)) < 1000


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
def test_error_names_the_missing_file(tmp_path: Path, name: str) -> None:
    folder = flagship_folder(tmp_path)
    (folder / name).unlink()
    with pytest.raises(WeightsError) as error:
        locate(FLAGSHIP, folder)
    assert name.removesuffix(".index.json") in str(error.value) and "is missing" in str(error.value)


def test_error_lists_all_missing_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(WeightsError) as error:
        locate(FLAGSHIP, tmp_path)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "adapter_config.json", "adapter_model"):
        assert name in str(error.value)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "pytorch_model.bin", "x" * 999, 5])
def test_index_may_only_name_safetensors_in_its_folder(tmp_path: Path, name: object) -> None:
    folder = write(tmp_path, sharded("bert", 1, 2) | TOKENIZER)
    write(folder, {"model.safetensors.index.json": as_json({"weight_map": {"weight": name}})})
    with pytest.raises(WeightsError, match="not a safetensors file in the same folder") as error:
        locate(SMALL, folder)
    assert len(str(error.value)) < 700


def test_adapter_bin_that_is_not_an_archive_is_an_error(tmp_path: Path) -> None:
    folder = flagship_folder(tmp_path)
    (folder / "adapter/adapter_model.safetensors").unlink()
    write(folder, {"adapter/adapter_model.bin": b"\x80\x02}."})
    with pytest.raises(WeightsError, match=r"adapter_model\.bin is not a PyTorch file"):
        locate(FLAGSHIP, folder)


def test_error_for_another_architecture_names_it_and_the_setting(tmp_path: Path) -> None:
    folder = write(tmp_path, encoder())
    with pytest.raises(WeightsError, match=r"model_type bert, not xlm-roberta: set E5_MODEL"):
        locate(catalog.get("multilingual-e5-base"), folder)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a folder"):
        locate(SMALL, tmp_path / "nothing")


def test_source_that_the_model_lacks_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="E5_SOURCE=adapter"):
        locate(SMALL, write(tmp_path, encoder()), source="adapter")


def test_folder_without_the_requested_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        locate(FLAGSHIP, flagship_folder(tmp_path), source="merged")


def test_error_for_a_missing_embedded_model_blames_the_clone(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="run from a complete clone"):
        locate(catalog.get(catalog.EMBEDDED), root=tmp_path)


def test_users_folder_has_priority_and_no_fallback(tmp_path: Path) -> None:
    ours = write(tmp_path / "weights" / SMALL.name, encoder())
    mine = write(tmp_path / "mine", encoder())
    assert locate(SMALL, mine, root=ours.parent).checkpoint == mine
    (mine / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"mine/tokenizer\.json is missing.*unset E5_WEIGHTS"):
        locate(SMALL, mine, root=ours.parent)
