"""Real E5 weights, a prefix model, through Cog server, gateway and page, started as in `make playground`."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from playwright.sync_api import Browser, expect

from e5 import Embedder, scores
from e5_cog.repository import ROOT
from e5_cog.server import free_port, stop
from e5_gateway.settings import KEY_VARIABLE
from tests import real_e5
from tests.gateways import SETTINGS
from tests.languages import ARTICLE_1
from tests.page.chromium import opened
from tests.page.examples import page_example

WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def url(real_e5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway with its own Cog server."""
    folder, port = tmp_path_factory.mktemp("playground"), free_port()
    options = ["--port", str(port), "--database", str(folder / "predictions.sqlite3")]
    model = {"E5_MODEL": real_e5.MODEL, "E5_WEIGHTS": str(real_e5_folder)}
    inherited = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "gateway.py"), *options],
            env={**inherited, **SETTINGS, **model},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process, folder / "log")
        yield address
    finally:
        stop(process)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the gateway knows its model. Raises RuntimeError with the end of the log."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/v1/models", timeout=5).status_code == 200:
                return
        except httpx.TransportError:  # not listening yet
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the gateway is not ready; its log ends with:\n{log.read_text(errors='replace')[-2000:]}")


def test_openai_client_gets_the_librarys_vectors(url: str, real_e5_model: Embedder) -> None:
    texts = list(ARTICLE_1.values())[::4]
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for suffix, embed in ((":query", real_e5_model.embed_queries), ("", real_e5_model.embed_documents)):
            answer = client.embeddings.create(model=real_e5.MODEL + suffix, input=texts)
            received = np.array([item.embedding for item in answer.data])
            np.testing.assert_allclose(received, embed(texts, normalize=True), rtol=0, atol=1e-6)


def test_file_of_texts_gets_the_librarys_vectors(
    browser: Browser, url: str, real_e5_model: Embedder, tmp_path: Path
) -> None:
    texts = list(ARTICLE_1.values())[::4]
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    with opened(browser, url) as tab:
        tab.fill(queries="", documents="")
        tab.page.locator("#field-file").set_input_files(tmp_path / "articles.jsonl")
        assert f"{len(texts)} texts" in tab.run()
        assert "of 384 dimensions" in tab.page.locator("#answer h2").inner_text()
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name="Download vectors.parquet").click()
        table = pq.read_table(io.BytesIO(Path(download.value.path()).read_bytes()))
    received = np.array(table["vector"].to_pylist())
    np.testing.assert_allclose(received, real_e5_model.embed_documents(texts), rtol=0, atol=1e-5)


def test_languages_example_shows_the_librarys_scores(browser: Browser, url: str, real_e5_model: Embedder) -> None:
    queries, documents = page_example("Across languages")
    want = scores(real_e5_model.embed_queries(queries), real_e5_model.embed_documents(documents))
    with opened(browser, url) as tab:
        expect(tab.page.locator("#model")).to_contain_text(
            f"{real_e5.MODEL} · 384 dimensions · texts of up to 512 tokens"
        )
        assert tab.page.locator("#field-task, #preset").count() == 0  # a prefix model takes no task
        languages = tab.page.get_by_role("button", name="Across languages")
        assert "3 queries × 2 documents" in tab.after(languages.click)
        assert "between 70 and 100 even for unrelated texts" in tab.page.locator(".legend-of-scores").inner_text()
        assert "run from 60 to 100" in tab.page.locator(".legend-of-scores").inner_text()
        cells = [float(text) for text in tab.page.locator(".heat tbody td").all_inner_texts()]
        rankings = tab.page.locator("#answer details")
        shown = [float(text) for text in rankings.locator(".score").all_inner_texts()]
        bars = rankings.locator(".bar").evaluate_all("bars => bars.map((bar) => bar.style.getPropertyValue('--share'))")
        assert bars == [f"{round(100 * (score - 60) / 40)}%" for score in shown]
        ranks = [int(text.removeprefix("#")) - 1 for text in rankings.locator("p small").all_inner_texts()]
        assert '"task"' not in tab.code("OpenAI")
    np.testing.assert_allclose(np.reshape(cells, want.shape), want, rtol=0, atol=0.06)  # one decimal is shown
    order = np.argsort(-want, axis=1)
    np.testing.assert_array_equal(np.reshape(ranks, want.shape), order)
    np.testing.assert_allclose(np.reshape(shown, want.shape), np.take_along_axis(want, order, 1), rtol=0, atol=0.006)
    assert [documents[index][:2] for index in order[:, 0]] == ["1.", "As", "1."], "each question finds its answer"
