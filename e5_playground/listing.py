"""Code and JSON as HTML with a button to copy it. What is copied is the text of the element, character by character."""

import html

from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

MOST_COLOURED = 30_000
"""Characters up to which code is coloured: that takes some 20 ms, and happens at each key."""

_FORMATTER = HtmlFormatter(nowrap=True)


def listing(text: str, language: str, label: str) -> str:
    """`language` as Pygments calls it; `label` is read out."""
    if len(text) > MOST_COLOURED:
        coloured = html.escape(text)
    else:
        # Without these options Pygments strips and adds line breaks.
        lexer = get_lexer_by_name(language, stripnl=False, stripall=False, ensurenl=False)
        coloured = highlight(text, lexer, _FORMATTER)
    return (
        f'<div class="e5-listing"><pre tabindex="0" role="region" aria-label="{html.escape(label)}">{coloured}</pre>'
        f'<button type="button" class="e5-copy" aria-label="Copy: {html.escape(label)}">Copy</button></div>'
    )
