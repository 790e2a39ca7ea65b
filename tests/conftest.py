"""Checkpoints that several test files share, made once a session."""

import os
from pathlib import Path

import pytest

# The tests speak to no hub, and a developer's own settings must not reach them.
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in [name for name in os.environ if name.startswith("E5_")]:
    del os.environ[_name]

from tests import checkpoints  # noqa: E402 – huggingface_hub reads its environment when it is imported


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def multilingual_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.multilingual_bert(tmp_path_factory.mktemp("multilingual_bert"))


@pytest.fixture(scope="session")
def xlm_roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.xlm_roberta(tmp_path_factory.mktemp("xlm_roberta"))
