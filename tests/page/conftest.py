"""Chromium, and gateways with and without a key in front of one Cog server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.gateways import Gateway, gateway
from tests.page.chromium import ARGUMENTS, CHROMIUM, SKIP, Tab, opened


@pytest.fixture(scope="module")  # not longer: Playwright leaves an event loop running, in which asyncio.run() fails
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(SKIP)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def url(shared_gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway without a key."""
    assert shared_gateway.server is not None
    with gateway(shared_gateway.server.url, tmp_path_factory.mktemp("open")) as started:
        yield started.url


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:
    with opened(browser, url) as tab:
        yield tab


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """PAGE_SCREENSHOTS keeps them."""
    folder = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
