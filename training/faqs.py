"""Questions of manuals with their answers, for evaluation: no other stage reads these packages."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import quality
from e5 import scores
from e5.embedder import Embedder
from training.sources import blocks

MANUALS = {
    "debian-faq": "usr/share/doc/debian/FAQ/*.en.html",
    "r-doc-html": "usr/share/R/doc/manual/R-FAQ.html",
    "zsh-doc": "usr/share/doc/zsh-common/html/FAQ0*.html",
}
"""Each Debian package, and its pages that have questions as headings."""
ANSWER_WORDS = 60
TOLERANCE = 1e-3
"""Of a score, 100 × cosine: equal answers rank equally, whatever rounding does to them."""


class QuestionAnswer(NamedTuple):
    """A heading that is a question, and the first `ANSWER_WORDS` words below it."""

    question: str
    answer: str


Manual = list[QuestionAnswer]


def read(folder: Path) -> list[Manual]:
    """Each manual's questions and answers. Empty if the packages are not below `folder`."""
    manuals = []
    for package, pattern in MANUALS.items():
        found: Manual = []
        for page in sorted((folder / package).glob(pattern)):
            question, words = "", list[str]()
            for tag, text in [*blocks(page), ("h1", "")]:
                if tag in ("h1", "h2", "h3", "h4"):
                    if question and words:
                        found.append(QuestionAnswer(question, " ".join(words[:ANSWER_WORDS])))
                    question, words = text.lstrip("0123456789.: ") if text.endswith("?") else "", []
                elif question and not text.startswith(("Next: ", "Previous: ", "Up: ")):  # links to other questions
                    words += text.split()
        if found:
            manuals.append(found)
    return manuals


def reciprocal_ranks(model: Embedder, manuals: Sequence[Manual], task: str | None) -> list[float]:
    """For each question, 1 / the rank of its answer among all answers of its manual; of equal ones, it is the last."""
    result: list[float] = []
    for manual in manuals:
        questions, answers = [pair.question for pair in manual], [pair.answer for pair in manual]
        similarities = scores(quality.embed(model, questions, task), model.embed_documents(answers, progress=False))
        result += (1 / (similarities > np.diag(similarities)[:, None] - TOLERANCE).sum(1)).tolist()
    return result
