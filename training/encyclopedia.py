"""Articles of English Wikipedia, from the excerpt that gensim's tests carry (about a hundred articles, 2016)."""

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

FILE = "gensim/gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TEMPLATE, TABLE = r"\{\{[^{}]*\}\}", r"\{\|[^{}]*\|\}"  # the innermost ones
FILE_LINK = r"\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]"


def paragraphs(folder: Path) -> Iterator[str]:
    """The articles' paragraphs of prose, without markup."""
    with bz2.open(folder / FILE) as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag.endswith("}text") and element.text:
                yield from map(str.strip, _plain(element.text).split("\n"))


def _plain(markup: str) -> str:
    """Remove templates, tables, references and files; keep the words of links. Lists and headings go as lines."""
    text = html.unescape(re.sub(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>", "", markup, flags=re.DOTALL))
    for inner in (
        r"\{\{[^{}]*\}\}",
        r"\{\|[^{}]*\|\}",
        r"\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]",
    ):
        count = 1
        while count:
            text, count = re.subn(inner, "", text, flags=re.IGNORECASE)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"^[=*#:;|!{}].*$", "", text, flags=re.MULTILINE)
    return re.sub(r"'{2,}|<[^>]*>", "", text)
