"""A tab of Chromium with the web page, for tests: what it shows, and everything that must not happen in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SKIP = "THE PAGE IS NOT TESTED IN A BROWSER: no chromium or google-chrome on PATH"
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WAIT = 20_000  # milliseconds
LAPTOP, PHONE = (1280, 900), (390, 844)
RECORD_VIOLATIONS = """
  window.violations = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    violations.push(`${event.violatedDirective}: ${event.blockedURI || event.sample}`);
  });
"""


@dataclass
class Tab:
    """An open page. `requests`: the URLs that it requested. `problems`: errors of its scripts and in its console."""

    page: Page
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            self.page.locator(f"#field-{name}").fill(text)

    def paste(self, name: str, text: str) -> None:
        """For long texts, which fill() enters slowly."""
        self.page.locator(f"#field-{name}").evaluate(
            "(node, text) => { node.value = text; node.dispatchEvent(new Event('input', {bubbles: true})); }", text
        )

    def run(self) -> str:
        """Click Run and return the status when the run is over."""
        return self.after(self.page.locator("#run").click)

    def after(self, start: Callable[[], None]) -> str:
        """Call `start`, wait for the end of the run that it starts, and return the status."""
        before = self.page.locator("[data-run]")
        old = before.get_attribute("data-run") if before.count() else "none"
        start()
        status = self.page.locator(f"[data-run]:not([data-run='{old}'])")
        status.wait_for(timeout=WAIT)
        return status.inner_text()

    def show(self, name: str) -> None:
        """Select a tab of the results."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def code(self, name: str) -> str:
        """The code in one tab, after the pause in which it follows the form."""
        self.page.wait_for_timeout(250)
        self.page.get_by_role("tab", name=name, exact=True).click()
        return str(self.page.locator("#code pre:visible").text_content())

    def scores(self) -> list[str]:
        return self.page.locator("#answer .score").all_inner_texts()

    def check(self) -> None:
        """Raise AssertionError if a script failed, or the Content-Security-Policy had to block anything."""
        assert self.problems == []
        assert self.page.evaluate("window.violations") == []


@contextmanager
def opened(
    browser: Browser, url: str, size: tuple[int, int] = LAPTOP, scheme: Any = "light", *, wait: bool = True
) -> Iterator[Tab]:
    """A new tab on the page. At the end nothing may have gone wrong in it. `wait`: until the form is there."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(WAIT)
    context.add_init_script(RECORD_VIOLATIONS)
    tab = Tab(context.new_page())
    tab.page.on("request", lambda request: tab.requests.append(request.url))
    tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.page.on("console", lambda message: tab.problems.append(message.text) if is_problem(message) else None)
    tab.page.goto(url)
    if wait:
        tab.page.locator("#form").wait_for()
    yield tab
    tab.check()
    context.close()


def is_problem(message: Any) -> bool:
    """The browser itself logs each response above 399, which the page reports in words."""
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text
