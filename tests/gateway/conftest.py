"""A Cog server with tests/rule_predictor.py for each module of this folder, and a gateway with a key in front of it.

Also a client of the shared gateway, which serves the embedded model.
"""

from collections.abc import Iterator

import httpx
import pytest

from e5_cog.server import Server, running
from tests.gateways import KEY, Gateway, gateway
from tests.rule_predictor import RULE


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(RULE) as started:
        assert started.health["status"] == "READY", started.log.read_text()[-2000:]
        yield started


@pytest.fixture(scope="module")
def keyed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(server.url, tmp_path_factory.mktemp("keyed"), key=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def client(shared_gateway: Gateway) -> Iterator[httpx.Client]:
    headers = {"Authorization": "Bearer test-key"}
    with httpx.Client(base_url=shared_gateway.url, headers=headers, timeout=60) as client:
        yield client
