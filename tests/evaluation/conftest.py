"""The two real models of the repository, declared with a limit of 256 tokens so that long texts stay fast.

Of the encoder's twelve layers, they have four: stock transformers computes its many wrong servers on one thread.
"""

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from e5.weights.locate import WEIGHTS
from evaluation.server_check.main import main
from tests.evaluation.wrong_model import WrongModel

MAX_TOKENS, LAYERS = 256, 4


def declare(folder: Path, name: str, **facts: object) -> Path:
    facts |= {"name": f"{name}-256", "max_tokens": MAX_TOKENS, "special_tokens": ["<s>", "</s>"]}
    (folder / "e5.json").write_text(json.dumps(facts), "utf-8")
    return folder


@pytest.fixture(scope="session")
def decoder_256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """e5-mistral-tiny as the model e5-mistral-tiny-256."""
    folder = tmp_path_factory.mktemp("decoder-256")
    for path in (WEIGHTS / "e5-mistral-tiny").iterdir():
        (folder / path.name).symlink_to(path)
    return declare(folder, "e5-mistral-tiny", prompt="instruct", pooling="last")


@pytest.fixture(scope="session")
def encoder_256(tmp_path_factory: pytest.TempPathFactory, real_e5_folder: Path) -> Path:
    """The first layers of multilingual-e5-small, rounded to 4 bits, as the model multilingual-e5-small-256."""
    folder = tmp_path_factory.mktemp("encoder-256")
    (folder / "tokenizer.json").symlink_to(real_e5_folder / "tokenizer.json")
    config = json.loads((real_e5_folder / "config.json").read_text("utf-8")) | {"num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with safe_open(real_e5_folder / "model.safetensors", "numpy") as tensors:
        kept = {name: tensors.get_tensor(name) for name in tensors.keys() if _layer(name) < LAYERS}  # noqa: SIM118
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return declare(folder, "multilingual-e5-small", prompt="prefix", pooling="mean")


def _layer(tensor: str) -> int:
    match = re.search(r"layer\.(\d+)\.", tensor)
    return int(match[1]) if match else 0


def record(folder: Path, file: Path) -> Path:
    name = json.loads((folder / "e5.json").read_text("utf-8"))["name"]
    assert main(["--model", name, "--weights", str(folder), "--record", str(file)]) == 0
    return file


@pytest.fixture(scope="session")
def decoder_fixtures(decoder_256: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(decoder_256, tmp_path_factory.mktemp("fixtures") / "decoder.json")


@pytest.fixture(scope="session")
def encoder_fixtures(encoder_256: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(encoder_256, tmp_path_factory.mktemp("fixtures") / "encoder.json")


@pytest.fixture(scope="session")
def wrong_decoder(decoder_256: Path) -> WrongModel:
    return WrongModel(decoder_256, MAX_TOKENS)


@pytest.fixture(scope="session")
def wrong_encoder(encoder_256: Path) -> WrongModel:
    return WrongModel(encoder_256, MAX_TOKENS)
