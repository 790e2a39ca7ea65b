"""The page in Chromium, with the real gateway and the real Cog server.

PLAYGROUND_SCREENSHOTS=folder keeps the screenshots.
"""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from gradio.state_holder import SessionState
from playwright.sync_api import Browser, Page, expect, sync_playwright

from e5 import tasks
from e5_cog.repository import ROOT
from e5_cog.server import free_port, running
from e5_gateway import app as gateway_app
from e5_gateway.settings import GatewaySettings
from e5_playground import guard
from e5_playground.page import mount

KEY = "a key of the tests"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WAIT = 20_000
DESKTOP, PHONE = (1280, 900), (390, 844)
# Characters with a meaning in the shell, Python, JavaScript and HTML.
NASTY = 'it\'s "so" $HOME `x` \\n {a} ${b} {{c}} <b>ü</b> 日本 🙂 !'
ATTACK = '<img src=x onerror="window.hacked=1"> ${window.hacked=2} {{value}}'

if CHROMIUM is None:
    pytest.skip("THE PAGE IS NOT TESTED IN A BROWSER: no chromium or google-chrome on PATH", allow_module_level=True)


@dataclass
class Tab:
    """An open page. `requests`: the URLs that it requested. `errors`: the errors of its scripts."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            self.page.locator(f"#e5-{name} textarea").fill(text)

    def run(self, press: str | None = None) -> str:
        """Click Run, or press keys in the queries, and return the status of the answer."""
        if press is None:
            return self.after(self.page.locator("#e5-run").click)
        return self.after(lambda: self.page.locator("#e5-queries textarea").press(press))

    def after(self, start: Callable[[], None]) -> str:
        """Call `start`, wait for the answer to the run, and return the status."""
        before = self.page.locator("#e5-status [data-run]")
        old = before.get_attribute("data-run") if before.count() else ""
        start()
        status = self.page.locator(f"#e5-status [data-run]:not([data-run='{old}'])")
        status.wait_for(timeout=WAIT)
        return status.inner_text()

    def code(self, index: int) -> str:
        """The code of one tab, which is rendered when it is selected."""
        self.page.locator("#e5-code [role=tab]").nth(index).click()
        return str(self.page.locator(f"#e5-code-{index} pre").text_content())

    def scores(self) -> list[str]:
        return self.page.locator("#e5-result .e5-score").all_inner_texts()


@pytest.fixture(scope="module")
def cog() -> Iterator[str]:
    with running({"E5_DTYPE": "float32", "E5_DEVICE": "cpu"}) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(cog: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(cog, tmp_path_factory.mktemp("open"), None) as address:
        yield address


@pytest.fixture(scope="module")
def keyed_url(cog: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(cog, tmp_path_factory.mktemp("keyed"), KEY) as address:
        yield address


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:
    with opened(browser, url) as tab:
        yield tab
        assert tab.errors == []


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PLAYGROUND_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def serving(target: str, folder: Path, key: str | None) -> Iterator[str]:
    """The gateway with the page in a thread of this process; waits until the model is ready."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings = GatewaySettings((target,), database=folder / "predictions.sqlite3", port=port, api_key=key)
    app = gateway_app.create(settings, page=True)
    mount(app, address, key_required=key is not None)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(f"{address}/v1/models", headers=headers).status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    yield address
    server.should_exit = server.force_exit = True
    app.state.page_requests.close()
    thread.join(20)


@contextmanager
def opened(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, scheme: Any = "light") -> Iterator[Tab]:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(WAIT)
    tab = Tab(context.new_page(), url)
    tab.page.on("request", lambda request: tab.requests.append(request.url))
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.page.goto(url)
    tab.page.locator("#e5-code-0 pre").wait_for()
    if tab.page.locator("#e5-key").count() == 0:
        expect(tab.page.locator("#e5-model")).to_contain_text("e5-mistral-tiny", timeout=WAIT)
        expect(tab.page.locator("#e5-code-0 pre")).to_contain_text("curl", timeout=WAIT)
    yield tab
    context.close()


def asked(url: str, **inputs: Any) -> dict[str, Any]:
    """The API's answer to the same inputs."""
    answer: dict[str, Any] = httpx.post(f"{url}/predictions", json={"input": inputs}, timeout=60).json()
    assert answer["status"] == "succeeded", answer
    return answer


def wait_for_code(tab: Tab, part: str) -> None:
    expect(tab.page.locator("#e5-code-0 pre")).to_contain_text(part, timeout=WAIT)


def test_ranking_shows_the_apis_scores(tab: Tab, screenshots: Path) -> None:
    documents = ["The tower is 300 m high.", "A recipe for soup.", "Towers are tall buildings."]
    tab.fill(queries="how tall is the tower?", documents="\n".join(documents))
    assert "1 query × 3 documents" in tab.run()
    expected = asked(tab.url, query="how tall is the tower?", documents=documents)["output"]["scores"][0]
    best = sorted(range(3), key=lambda index: -expected[index])
    assert [float(score) for score in tab.scores()] == pytest.approx([expected[index] for index in best], abs=0.006)
    shown = tab.page.locator("#e5-result .e5-ranking p").all_inner_texts()
    assert [text.partition(" ")[2] for text in shown] == [documents[index] for index in best]
    assert "Round trip" in tab.page.locator("#e5-result .e5-facts").inner_text()
    tab.page.screenshot(path=screenshots / "ranking.png")


def test_ctrl_enter_runs_and_no_other_host_is_contacted(tab: Tab) -> None:
    assert "2 queries × 2 documents" in tab.run(press="Control+Enter")
    for name in ("Vectors", "JSON"):
        tab.page.get_by_role("tab", name=name).click()
    assert tab.requests
    assert {address.split("/")[2].split(":")[0] for address in tab.requests if "://" in address} == {"127.0.0.1"}
    assert "gradio.app" not in httpx.get(tab.url).text.split("window.gradio_config")[0]


def test_status_is_announced_and_fields_have_labels(tab: Tab) -> None:
    expect(tab.page.locator("#e5-status")).to_have_attribute("aria-live", "polite")
    expect(tab.page.get_by_role("region", name="Results")).to_be_visible()
    for name in ("Task", "Queries", "Documents"):
        expect(tab.page.get_by_role("textbox", name=re.compile(f"^{name}"))).to_be_visible()
    expect(tab.page.get_by_role("checkbox", name=re.compile("^Normalize"))).to_be_visible()
    assert tab.page.title() == "E5 embeddings"


def test_keyboard_reaches_every_control(tab: Tab) -> None:
    seen = set()
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        seen.add(tab.page.evaluate("document.activeElement.closest('[id^=e5-]')?.id ?? ''"))
    assert {"e5-example-cards", "e5-preset", "e5-task", "e5-queries", "e5-documents", "e5-run"} <= seen
    assert {"e5-normalize", "e5-format", "e5-code-0"} <= seen


def test_several_queries_show_a_heat_map(tab: Tab) -> None:
    tab.run()
    inputs = json.loads(tab.code(0).partition("--data-binary '")[2].rstrip()[:-1].replace("'\"'\"'", "'"))["input"]
    expected = asked(tab.url, **inputs)["output"]["scores"]
    cells = tab.page.locator(".e5-heat tbody td").all_inner_texts()
    assert [float(cell) for cell in cells] == pytest.approx([value for row in expected for value in row], abs=0.06)
    assert tab.page.locator(".e5-heat th[scope=col]").first.get_attribute("title") == inputs["documents"][0]
    assert tab.page.locator(".e5-each").count() == 2


def test_preset_fills_the_task(tab: Tab) -> None:
    tab.page.locator("#e5-preset input").click()
    tab.page.locator("#e5-preset input").fill("SciFact")
    tab.page.get_by_role("option", name="Retrieval · SciFact").click()
    expect(tab.page.locator("#e5-task textarea")).to_have_value(tasks.instruction("SciFact"))
    wait_for_code(tab, tasks.instruction("SciFact"))
    tab.fill(task="a task of mine")
    expect(tab.page.locator("#e5-preset input")).to_have_value("Custom: what the field says")
    wait_for_code(tab, "a task of mine")


def test_examples_fill_the_form_and_run(browser: Browser, url: str, screenshots: Path) -> None:
    with opened(browser, url, scheme="dark") as tab:
        assert "1 query × 8 documents" in tab.after(tab.page.locator("#e5-example-faq").click)
        assert "30 days" in tab.page.locator("#e5-result .e5-ranking p").first.inner_text()
        expect(tab.page.locator("#e5-preset input")).to_have_value("Retrieval · NQ")
        assert "5 queries" in tab.after(tab.page.locator("#e5-example-duplicates").click)
        assert tab.page.locator(".e5-heat tbody td").count() == 25
        assert tab.page.locator(".e5-heat tbody td").first.inner_text() == "100.0"
        assert "guitar" in tab.page.locator("#e5-result .e5-note").first.inner_text()
        tab.page.screenshot(path=screenshots / "duplicates-dark.png")
        assert "dark" in str(tab.page.locator("body").get_attribute("class"))
        expect(tab.page.locator("#e5-example-languages")).to_be_disabled()
        expect(tab.page.locator("#e5-only-english")).to_contain_text("multilingual-e5")
        assert tab.errors == []


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"documents": '["a", ""]'}, "documents", "Document 2 is empty"),
        ({"queries": '["a", '}, "queries", "JSON list"),
        ({"queries": " ", "documents": " "}, None, "There is no text yet"),
    ],
)
def test_errors_are_shown_at_their_field(
    tab: Tab, screenshots: Path, fields: dict[str, str], where: str | None, words: str
) -> None:
    tab.run()
    tab.fill(**fields)
    status = tab.run()
    assert words in status
    assert "InputError" not in status
    assert "Prediction failed" not in status
    if where is not None:
        expect(tab.page.locator(f"#e5-error-{where}")).to_contain_text(words)
        tab.page.screenshot(path=screenshots / f"error-{where}.png")
    expect(tab.page.locator("#e5-result")).to_be_hidden()  # not the previous answer
    tab.fill(queries="a", documents="b")
    assert "Done" in tab.run()
    assert tab.page.locator("[id^=e5-error] .e5-error").count() == 0


def test_code_follows_the_form_and_runs(tab: Tab) -> None:
    tab.fill(queries=NASTY, documents=f"{NASTY}\nA recipe for soup.")
    wait_for_code(tab, "日本")
    tab.page.locator("#e5-normalize input").check()
    wait_for_code(tab, '"normalize": true')
    tab.run()
    tab.page.locator("#e5-code .e5-copy").first.click()
    copied = str(tab.page.evaluate("navigator.clipboard.readText()"))
    assert copied == tab.code(0)
    done = subprocess.run(["bash", "-c", copied], capture_output=True, text=True, timeout=30, check=True)
    answer = json.loads(done.stdout)
    expected = asked(tab.url, query=NASTY, documents=[NASTY, "A recipe for soup."], normalize=True)
    assert answer["output"]["scores"] == expected["output"]["scores"]
    assert sorted(map(float, tab.scores())) == pytest.approx(sorted(expected["output"]["scores"][0]), abs=0.006)
    assert answer["output"]["embeddings"] == expected["output"]["embeddings"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REPLICATE_"))}
    for index in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", tab.code(index)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed = [float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout)]
        for score in expected["output"]["scores"][0]:
            assert pytest.approx(score, abs=0.06) in printed, done.stdout


def test_base64_answers_are_decoded(tab: Tab) -> None:
    tab.fill(queries="one", documents="two")
    tab.page.get_by_label("base64").check()
    wait_for_code(tab, '"encoding_format": "base64"')
    tab.run()
    tab.page.get_by_role("tab", name="Vectors").click()
    numbers = tab.page.locator("#e5-vectors .e5-numbers").first.inner_text().split()
    expected = asked(tab.url, query="one", document="two")["output"]["embeddings"][0]
    assert [float(number) for number in numbers[:4]] == pytest.approx(expected[:4], abs=1e-4)


def test_smaller_vectors_and_refused_long_texts(tab: Tab) -> None:
    tab.fill(queries="one", documents="two")
    tab.page.get_by_label("int8").check()
    tab.page.get_by_label("error", exact=True).check()
    wait_for_code(tab, '"long_texts": "error"')
    tab.run()
    tab.page.get_by_role("tab", name="Vectors").click()
    numbers = tab.page.locator("#e5-vectors .e5-numbers").first.inner_text().split()
    expected = asked(tab.url, query="one", document="two")["output"]["embeddings"][0]
    step = max(map(abs, expected)) / 127
    assert [float(number) for number in numbers[:4]] == pytest.approx(expected[:4], abs=step)
    tab.fill(documents="word " * 5000)
    assert "document has 5,002 tokens" in tab.run()


def test_texts_are_never_html(tab: Tab) -> None:
    tab.fill(queries=f"{ATTACK}\nsecond", documents=f"{ATTACK}\nother", task=ATTACK)
    tab.run()
    for name in ("Vectors", "JSON", "Scores"):
        tab.page.get_by_role("tab", name=name).click()
    tab.fill(queries=f'["{ATTACK[:4]}')
    tab.run()
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img[src=x]").count() == 0


def test_html_in_a_text_is_shown_verbatim(tab: Tab) -> None:
    tab.fill(queries=ATTACK, documents=f"{ATTACK}\nother")
    tab.run()
    assert ATTACK in tab.page.locator("#e5-result .e5-ranking").inner_text()


def test_download_is_the_whole_answer(tab: Tab) -> None:
    documents = [f"document number {index} about the tower" for index in range(2_000)]
    tab.fill(queries="how tall is the tower?")
    tab.page.evaluate("text => navigator.clipboard.writeText(text)", "\n".join(documents))
    for keys in ("Control+a", "Control+v"):  # paste: fill() takes seconds
        tab.page.locator("#e5-documents textarea").press(keys)
    tab.page.get_by_label("base64").check()
    assert "2,000 documents" in tab.run()
    assert tab.page.locator("#e5-result .e5-ranking li").count() == 100
    assert "… and 1,900 documents more" in tab.page.locator("#e5-result").inner_text()
    tab.page.get_by_role("tab", name="JSON").click()
    assert len(tab.page.locator("#e5-raw").inner_text()) < 20_000
    with tab.page.expect_download() as download:
        tab.page.locator("#e5-download").click()
    assert download.value.suggested_filename == "answer.json"
    answer = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert len(answer["output"]["embeddings_base64"]) == 2_001
    assert len(answer["output"]["scores"][0]) == 2_000
    wait_for_code(tab, "@request.json")  # too long for a command line
    with tab.page.expect_download() as download:
        tab.page.locator("#e5-save").click()
    assert download.value.suggested_filename == "request.json"
    saved = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert saved["input"]["documents"] == documents


def test_double_click_sends_one_request(tab: Tab) -> None:
    joined = len([address for address in tab.requests if "queue/join" in address])
    tab.after(tab.page.locator("#e5-run").dblclick)
    tab.page.wait_for_timeout(500)
    assert len([address for address in tab.requests if "queue/join" in address]) == joined + 1


def test_phone_needs_no_horizontal_scrolling(browser: Browser, url: str, screenshots: Path) -> None:
    with opened(browser, url, PHONE) as tab:
        tab.page.screenshot(path=screenshots / "phone-first.png")
        for _ in range(2):
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
            tab.run()
        tab.page.locator("#e5-status").scroll_into_view_if_needed()
        tab.page.screenshot(path=screenshots / "phone.png", full_page=True)
        left = tab.page.locator("#e5-form").bounding_box()
        right = tab.page.locator("#e5-results").bounding_box()
        assert left
        assert right
        assert right["y"] >= left["y"] + left["height"]  # one column


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(browser: Browser, url: str, screenshots: Path, scheme: str) -> None:
    with opened(browser, url, scheme=scheme) as tab:
        tab.page.screenshot(path=screenshots / f"first-{scheme}.png")
        tab.run()
        tab.page.screenshot(path=screenshots / f"desktop-{scheme}.png", full_page=True)
        worst = tab.page.evaluate(CONTRASTS)
        assert worst
        assert {name: value for name, value in worst.items() if value < 4.5} == {}


def test_page_asks_for_the_key(browser: Browser, keyed_url: str, screenshots: Path) -> None:
    with opened(browser, keyed_url) as tab:
        expect(tab.page.locator("#e5-model")).to_contain_text("asks for an API key", timeout=WAIT)
        assert "key is missing or wrong" in tab.run()
        expect(tab.page.locator("#e5-error-key")).to_contain_text("key is missing or wrong")
        tab.page.screenshot(path=screenshots / "key.png")
        tab.page.locator("#e5-key input").fill(KEY)
        assert "Done" in tab.run()
        expect(tab.page.locator("#e5-model")).to_contain_text("e5-mistral-tiny", timeout=WAIT)
        wait_for_code(tab, "Authorization: Bearer $GATEWAY_API_KEY")
        for index in range(4):
            assert KEY not in tab.code(index)
            assert "GATEWAY_API_KEY" in tab.code(index)
        copied = tab.code(0)
        environment = {**os.environ, "GATEWAY_API_KEY": KEY}
        done = subprocess.run(["bash", "-c", copied], capture_output=True, text=True, env=environment, check=True)
        assert json.loads(done.stdout)["status"] == "succeeded"


def handler(body: dict[str, Any]) -> dict[str, Any]:
    """A call of the unqueued handler that writes the code snippets, which contain its inputs."""
    return {"fn_index": body["fn_index"], "data": body["data"], "session_hash": "tests"}


def index_of_write(url: str) -> int:
    """The index of the handler that the page calls at each keystroke."""
    handlers = httpx.get(f"{url}/config").json()["dependencies"]
    index: int = next(each["id"] for each in handlers if len(each["inputs"]) == 8 and len(each["outputs"]) == 6)
    return index


def test_file_references_in_place_of_texts_are_refused(
    keyed_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of this machine")
    values = [None, "", "task", "query", "document", True, "float", "truncate"]
    call = handler({"fn_index": index_of_write(keyed_url), "data": values})
    assert "query" in httpx.post(f"{keyed_url}/gradio_api/run/x", json=call).text  # it is the right handler
    for path in (str(secret), "/proc/self/environ", "http://127.0.0.1:1/x"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for text in (file, [file], {"a": file}):
            bad = call | {"data": [*values[:3], text, *values[4:]]}
            answer = httpx.post(f"{keyed_url}/gradio_api/run/x", json=bad)
            assert answer.status_code == 422
            assert httpx.post(f"{keyed_url}/gradio_api/queue/join", json=bad).status_code == 422
    assert httpx.get(f"{keyed_url}/gradio_api/file={secret}").status_code == 403
    # Gradio refuses them too, if they pass the guard.
    monkeypatch.setattr(guard, "is_plain", lambda *_: True)
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    answer = httpx.post(f"{keyed_url}/gradio_api/run/x", json=call | {"data": [*values[:3], file, *values[4:]]})
    assert answer.status_code == 500
    assert "gradio/" not in answer.text


def test_what_gradio_would_keep_or_log_is_short(keyed_url: str) -> None:
    """Gradio keeps session hashes in memory, and logs a preset that is none of the choices, without the key."""
    values = [None, "", "task", "query", "document", True, "float", "truncate"]
    call = handler({"fn_index": index_of_write(keyed_url), "data": values})
    long = "x" * 10_000
    for wrong in (
        {"session_hash": long},
        {"session_hash": "a/b"},
        {"session_hash": {"a": 1}},
        {"event_id": long},
        {"trigger_id": long},
        {"fn_index": "13"},
        {"fn_index": True},
        {"event_data": {"path": "x"}},
        {"more": 1},
        {"data": [None, long, *values[2:]]},
        {"data": [*values[:6], long, values[7]]},
        {"data": [*values[:7], long]},
    ):
        answer = httpx.post(f"{keyed_url}/gradio_api/run/x", json=call | wrong)
        assert (answer.status_code, wrong.keys()) == (422, wrong.keys())
    assert httpx.get(f"{keyed_url}/gradio_api/queue/data", params={"session_hash": long}).status_code == 404
    assert httpx.get(f"{keyed_url}/gradio_api/heartbeat/{long}").status_code == 404


def test_page_may_not_be_framed_and_loads_nothing_from_elsewhere(keyed_url: str) -> None:
    policy = httpx.get(keyed_url).headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'self'" in policy
    assert "http" not in policy and "*" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "upload",
        "deep_link",
        "info",
        "openapi.json",
        "proxy=http://x",
        "process_recording",
        "call/x",
        "api/x",
        "stream/x",
    ],
)
def test_unused_gradio_routes_are_closed(keyed_url: str, path: str) -> None:
    url = f"{keyed_url}/gradio_api/{path}"
    assert httpx.get(url).status_code == 404
    assert httpx.post(url, content=b"x").status_code == 404


def test_oversized_page_request_gets_413(keyed_url: str) -> None:
    large = handler({"fn_index": 0, "data": ["x" * (guard.MOST_BYTES + 1)]})
    for path in ("run/x", "queue/join"):
        assert httpx.post(f"{keyed_url}/gradio_api/{path}", json=large).status_code == 413


def test_sessions_keep_no_keys_or_texts(browser: Browser, keyed_url: str) -> None:
    word = "a text that is nowhere else"
    with opened(browser, keyed_url) as tab:
        tab.page.locator("#e5-key input").fill(KEY)
        tab.fill(queries=word)
        assert "Done" in tab.run()
        sessions = [state for state in gc.get_objects() if isinstance(state, SessionState)]
        assert sessions
        contents = repr([(session.config_values, session.state_data) for session in sessions])
        assert KEY not in contents
        assert word not in contents


def test_library_does_not_mention_the_page() -> None:
    assert not [path.name for path in (ROOT / "e5").glob("*.py") if "playground" in path.read_text("utf-8")]


CONTRASTS = """() => {
  // WCAG contrast of each text element with the first opaque colour behind it.
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...colour].slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|^transparent$/.test(colour)) return colour;
    }
    return 'white';
  };
  const found = {};
  const texts = 'h1,h2,p,li,dt,dd,td,th,small,summary,strong,kbd,caption,pre,pre span,.e5-score,.e5-copy,label span,' +
    '#e5-run,.e5-example:not(:disabled),[role=tab]';
  for (const e of document.querySelectorAll(texts)) {
    if (!e.innerText?.trim() || !e.checkVisibility()) continue;
    const under = back(e), colour = getComputedStyle(e).color;
    const [a, b] = [light(rgb(colour, under)), light(rgb(under, 'white'))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = `${e.tagName} ${e.className} ${colour} on ${under}`;
    found[name] = Math.min(found[name] ?? 99, Math.round(contrast * 100) / 100);
  }
  return found;
}"""
