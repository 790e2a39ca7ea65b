"""Words and texts → HTML: every text of a person goes through here, and is cut to what a page can hold."""

import html
import re

MOST_TITLE = 2_000  # characters of a text that are there to be pointed at

_NAME = re.compile(r"`([^`]{1,60})`")


def escape(text: str) -> str:
    """Text → HTML, for content and for quoted attributes."""
    return html.escape(text, quote=True)


def short(text: str, most: int) -> str:
    return escape(text if len(text) <= most else text[: most - 1].rstrip() + "…")


def title(text: str) -> str:
    return short(text, MOST_TITLE)


def sentence(message: str) -> str:
    """A message with its names in backticks as code, and a full stop."""
    stopped = message if message.endswith((".", "!", "?")) else f"{message}."
    return _NAME.sub(r"<code>\1</code>", escape(stopped))


def count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}" if number else ""


def more(number: int, one: str, many: str) -> str:
    return (
        f'<p class="e5-note e5-more">… and {count(number, one, many)} more: the download has all.</p>'
        if number > 0
        else ""
    )


def milliseconds(value: float) -> str:
    return f"{value / 1e3:,.2f} s" if value >= 1_000 else f"{value:,.1f} ms" if value < 100 else f"{value:,.0f} ms"
