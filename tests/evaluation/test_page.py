"""The page of a report: parsed by Python's HTML parser, and opened in Chromium where it is installed."""

import copy
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.page import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta"}
ATTACK = """'"><img src=x onerror="alert(1)"></style></title><script>alert(2)</script>&amp;"""
SICK_R = {
    "type": "STS",
    "split": "test",
    "metric": "cosine_spearman",
    "main_score": 78.63,
    "published": 78.71,
    "difference": -0.08,
    "tolerance": 0.3,
    "within": True,
    "source": "results-repo fd1525a9 mteb 1.36.28",
    "texts": 19854,
    "tokens": 250000,
    "seconds": 61.2,
    "truncated": 12,
    "data": "local",
}
NO_FIGURES = dict.fromkeys(("published", "difference", "tolerance", "within", "source"))
REPORT: dict[str, Any] = {
    "model": "multilingual-e5-small",
    "revision": "8c1f3b6bcd2b9ab5b1b1a8dd1b1b7d2b7e2d1c3a",
    "protocol": "mteb",
    "max_tokens": 512,
    "dtype": "float32",
    "device": "cpu",
    "vectors": "float16",
    "server": None,
    "date": "2026-11-28",
    "versions": {"e5-cog": "0.1.0", "mteb": "2.26.24", "torch": "2.13.0"},
    "tasks": {
        "SICK-R": SICK_R,
        "NFCorpus": SICK_R | {"main_score": 31.0, "published": 32.25, "difference": -1.25, "within": False},
        "own-task": SICK_R | NO_FIGURES | {"main_score": 12.5},
    },
    "benchmarks": {"beir": {"tasks": 14, "of": 15, "mean": 57.0, "published": 57.07}},
    "failed": {"FEVER": "the data set could not be loaded: no such file"},
}


class Page(HTMLParser):
    """The page's elements and visible text. Fails if an end tag does not match the open element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    def bars(self) -> list[float]:
        """The width of each bar in percent."""
        styles = [attributes.get("style", "") for tag, attributes in self.elements if tag == "b"]
        return [float(re.fullmatch(r"width:([\d.]+)%", style).group(1)) for style in styles]  # type: ignore[union-attr]

    def labels(self) -> list[str]:
        return [attributes["aria-label"] for _, attributes in self.elements if attributes.get("role") == "img"]


def test_page_shows_every_fact_of_the_report() -> None:
    page = Page(render(REPORT))
    assert page.texts.count("multilingual-e5-small · mteb") == 2  # title and heading
    text = "\n".join(page.texts)
    for fact in ("revision", "max_tokens", "dtype", "device", "vectors", "date"):
        assert str(REPORT[fact]) in page.texts
    assert "e5-cog 0.1.0, mteb 2.26.24, torch 2.13.0" in page.texts
    assert ": mean 57.00, published 57.07" in text and "14 of 15 tasks" in text
    assert ": the data set could not be loaded: no such file" in text
    row = page.texts[page.texts.index("Source") + 1 :]
    assert row[: row.index("NFCorpus")] == [
        *("SICK-R", "STS, test split, local data", "cosine_spearman", "78.63", "78.71", "−0.08", "✓ within ±0.3"),
        *("19,854", "12 truncated", "61.2 s", "4,085 tokens/s", "results-repo fd1525a9 mteb 1.36.28"),
    ]
    assert "✗ beyond ±0.3" in page.texts
    assert page.labels()[0] == "SICK-R: ours 78.63, published 78.71"


def test_bars_have_the_length_of_their_scores() -> None:
    assert Page(render(REPORT)).bars() == [78.63, 78.71, 31.0, 32.25, 12.5, 0]


def test_bars_fit_a_score_above_100_and_a_negative_one() -> None:
    tasks = {"a": SICK_R | {"main_score": 200.0, "published": 50.0}, "b": SICK_R | {"main_score": -20.0}}
    page = Page(render(REPORT | {"tasks": tasks}))
    assert page.bars() == [100, 25, 0, pytest.approx(78.71 / 2, abs=0.01)]
    assert page.labels()[1] == "b: ours −20.00, published 78.71"


def test_texts_of_the_report_are_escaped() -> None:
    hostile = {
        **dict.fromkeys(("model", "revision", "protocol", "dtype", "device", "vectors", "server", "date"), ATTACK),
        "versions": {ATTACK: ATTACK},
        "tasks": {
            ATTACK: SICK_R | dict.fromkeys(("type", "split", "metric", "source", "data", "tolerance"), ATTACK),
        },
        "benchmarks": {ATTACK: {"tasks": ATTACK, "of": ATTACK, "mean": ATTACK, "published": ATTACK}},
        "failed": {ATTACK: ATTACK},
    }
    page, harmless = Page(render(hostile)), Page(render(REPORT))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in harmless.elements}
    assert page.labels() == [f"{ATTACK}: ours 78.63, published 78.71"]
    assert f"{ATTACK} · {ATTACK}" in page.texts
    names = {name for _, attributes in page.elements for name in attributes}
    assert names == {name for _, attributes in harmless.elements for name in attributes}


def test_page_loads_nothing_and_runs_nothing() -> None:
    html = render(REPORT)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|\bsrc=|\bhref=|\bon\w+=", html)
    assert len(html) < 20_000


def paths_of(report: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in report.items():
        yield (*path, name)
        if isinstance(value, dict) and name != "versions":
            yield from paths_of(value, (*path, name))


FIELDS = [path for path in paths_of(REPORT) if path[-1] not in (*REPORT["tasks"], "beir")]


@given(st.sets(st.sampled_from(FIELDS)), st.booleans())
def test_any_field_may_be_missing_or_null(fields: set[tuple[str, ...]], null: bool) -> None:
    report = copy.deepcopy(REPORT)
    for path in sorted(fields, key=len, reverse=True):
        holder = report
        for name in path[:-1]:
            holder = holder[name]
        if null:
            holder[path[-1]] = None
        else:
            del holder[path[-1]]
    page = Page(render(report))
    assert not [text for text in page.texts if re.search(r"\bNone\b|\bnan\b", text)]


def test_empty_report_and_numbers_that_are_not_finite() -> None:
    assert Page(render({})).texts == ["– · –"] * 2
    broken = SICK_R | {"main_score": float("nan"), "published": float("inf"), "seconds": 0.0, "difference": -0.001}
    page = Page(render(REPORT | {"tasks": {"a": broken}}))
    assert page.bars() == [0, 0]
    assert page.labels() == ["a: ours –, published –"]
    assert "+0.00" in page.texts  # not −0.00


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    if CHROMIUM is None:
        pytest.skip("THE PAGE IS NOT TESTED IN A BROWSER: no chromium or google-chrome on PATH")
    api = pytest.importorskip("playwright.sync_api", reason="THE PAGE IS NOT TESTED IN A BROWSER: no playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1200, 1121, 1000, 400, 320])
@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(15, 23, 42)")])
def test_page_needs_no_horizontal_scrolling(
    browser: "Browser", tmp_path: Path, width: int, scheme: Any, background: str
) -> None:
    long = "a_long_name_without_a_space" * 8
    tasks = REPORT["tasks"] | {long: SICK_R | {"metric": long, "source": long, "texts": 5_416_568, "seconds": 123456.7}}
    (tmp_path / "page.html").write_text(render(REPORT | {"tasks": tasks, "failed": {long: long}}), "utf-8")
    requests: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert len(requests) == 1
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    track, bar = (page.locator(f".bar {tag}").first.bounding_box() for tag in ("i", "b"))
    assert track and bar and bar["width"] / track["width"] == pytest.approx(0.7863, abs=0.01)
    page.close()
