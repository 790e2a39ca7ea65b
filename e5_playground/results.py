"""An answer → HTML: scores as rankings and as a heat map, vectors, counts and times.

Every text of a person goes through `escape`. The HTML is bounded whatever the answer's size: what is left out is
counted in words, and the download has it all.
"""

import numpy as np
from numpy.typing import NDArray

from e5_playground.answer import Answer, similarities
from e5_playground.markup import count, escape, milliseconds, more, sentence, short, title

Scores = NDArray[np.float64]

MOST_RANKED = 100  # rows of the ranking of a single query
MOST_RANKED_EACH = 10  # and of one among several
MOST_QUERIES = 20
MOST_HEAT = 24  # rows, and columns, of a heat map
MOST_VECTORS = 50
MOST_TEXT = 300  # characters
FIRST_NUMBERS = 4

NARROW = 60.0
"""Where no score is below this, bars and colours begin here: the prefix models' scores all lie between 70 and 100, by
their training's low temperature (model card of intfloat/e5-small), and what counts is the order."""


def summary(answer: Answer, seconds: float) -> str:
    """One line that says what has come: it is read out to those who do not see the page."""
    parts = [count(len(answer.queries), "query", "queries"), count(len(answer.documents), "document", "documents")]
    what = " × ".join(part for part in parts if part)
    tokens = answer.metrics.get("input_tokens")
    read = f", {tokens:,.0f} tokens" if tokens is not None else ""
    return f'<p class="e5-done">Done: {what}{read}, in {milliseconds(seconds * 1e3)}.</p>'


def notice(message: str) -> str:
    """What went wrong, in the place of a result or beside a field."""
    return f'<p class="e5-error"><strong>There is no answer.</strong> {sentence(message)}</p>'


def beside(message: str) -> str:
    """What is wrong with one field."""
    return f'<p class="e5-error">{sentence(message)}</p>'


def result(answer: Answer, seconds: float) -> str:
    """The first tab: warnings, what fits to what, counts and times."""
    return _warnings(answer) + _scores(answer) + _facts(answer, seconds)


def vectors(answer: Answer) -> str:
    """The second tab: each vector's length, and its first numbers."""
    norms = np.linalg.norm(answer.vectors.astype(np.float64), axis=1)
    rows = []
    for index, text in enumerate(answer.texts[:MOST_VECTORS]):
        query = index < len(answer.queries)
        name = f"query {index + 1}" if query else f"document {index - len(answer.queries) + 1}"
        numbers = " ".join(f"<span>{number:.4f}</span>" for number in answer.vectors[index][:FIRST_NUMBERS])
        rows.append(
            f'<tr><th scope="row">{name}<small title="{title(text)}">{short(text, 60)}</small></th>'
            f'<td class="e5-number">{norms[index]:.4f}</td><td class="e5-numbers">{numbers} …</td></tr>'
        )
    size = answer.vectors.shape[1]
    return (
        f'<p class="e5-note">{count(len(answer.texts), "vector", "vectors")} of {size:,} float32 numbers each.</p>'
        '<div class="e5-scroll" tabindex="0" role="region" aria-label="Vectors"><table class="e5-vectors">'
        '<thead><tr><th scope="col">Text</th><th scope="col">Length</th>'
        f'<th scope="col">First {min(FIRST_NUMBERS, size)} numbers</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>" + more(len(answer.texts) - MOST_VECTORS, "vector", "vectors")
    )


def heat_map(scores: Scores, rows: tuple[str, ...], columns: tuple[str, ...], caption: str) -> str:
    """A table with one cell a pair, its colour as strong as its score."""
    shown = scores[:MOST_HEAT, :MOST_HEAT]
    low, high = _scale(shown)
    head = "".join(_header(text, "col", index) for index, text in enumerate(columns[:MOST_HEAT]))
    body = []
    for index, row in enumerate(shown):
        cells = "".join(f'<td style="--e5-share:{_share(value, low, high)}%">{value:.1f}</td>' for value in row)
        body.append(f"<tr>{_header(rows[index], 'row', index)}{cells}</tr>")
    left_out = more(len(rows) - MOST_HEAT, "row", "rows") + more(len(columns) - MOST_HEAT, "column", "columns")
    return (
        '<div class="e5-scroll" tabindex="0" role="region" aria-label="Heat map"><table class="e5-heat">'
        f"<caption>{escape(caption)}</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{left_out}"
    )


def ranking(row: Scores, documents: tuple[str, ...], most: int) -> str:
    """Documents by their score with one query, the best first; equal scores keep the documents' order."""
    low, high = _scale(row)
    items = "".join(
        f'<li><span class="e5-score">{row[place]:.2f}</span><div>'
        f'<div class="e5-bar" style="--e5-share:{_share(row[place], low, high)}%"></div>'
        f'<p title="{title(documents[place])}"><small>#{place + 1}</small> '
        f"{short(documents[place], MOST_TEXT)}</p></div></li>"
        for place in np.argsort(-row, kind="stable")[:most]
    )
    return f'<ol class="e5-ranking">{items}</ol>' + more(len(documents) - most, "document", "documents")


def _scores(answer: Answer) -> str:
    if answer.scores is None:
        return _alone(answer)
    if len(answer.queries) == 1:
        return (
            f'<h3 class="e5-query" title="{title(answer.queries[0])}">{short(answer.queries[0], MOST_TEXT)}</h3>'
            + ranking(answer.scores[0], answer.documents, MOST_RANKED)
            + _legend(answer.scores)
        )
    parts = [heat_map(answer.scores, answer.queries, answer.documents, "Queries (rows) × documents (columns)")]
    for index, query in enumerate(answer.queries[:MOST_QUERIES]):
        opened = " open" if index < 4 else ""
        parts.append(
            f'<details class="e5-each"{opened}><summary title="{title(query)}">{short(query, MOST_TEXT)}</summary>'
            f"{ranking(answer.scores[index], answer.documents, MOST_RANKED_EACH)}</details>"
        )
    return "".join(parts) + more(len(answer.queries) - MOST_QUERIES, "query", "queries") + _legend(answer.scores)


def _alone(answer: Answer) -> str:
    """Texts of one side have no scores from the API; what they have with each other is computed from the vectors."""
    if len(answer.texts) == 1:
        other = "document" if answer.queries else "query"
        return (
            f'<p class="e5-note">One vector of {answer.vectors.shape[1]:,} numbers: see Vectors. '
            f"With a {other} beside it there is a score.</p>"
        )
    kind = "queries" if answer.queries else "documents"
    near = similarities(answer.vectors[:MOST_HEAT])
    return (
        heat_map(near, answer.texts, answer.texts, f"Each of the {kind} with each other, from their vectors")
        + _closest(near, answer.texts)
        + _legend(near)
    )


def _closest(near: Scores, texts: tuple[str, ...]) -> str:
    """The pair with the highest score."""
    rows, columns = np.triu_indices(len(near), 1)
    best = int(np.argmax(near[rows, columns]))
    which = "Closest" if len(near) == len(texts) else f"Closest of the first {len(near)}"
    left, right = int(rows[best]), int(columns[best])
    return (
        f'<p class="e5-note">{which}: <strong>{near[left, right]:.2f}</strong> for '
        f"“{short(texts[left], 100)}” and “{short(texts[right], 100)}”.</p>"
    )


def _legend(scores: Scores) -> str:
    low, high = _scale(scores)
    return f'<p class="e5-note">Scores are 100 × cosine. Bars and colours run from {low:.0f} to {high:.0f}.</p>'


def _warnings(answer: Answer) -> str:
    found = list(answer.warnings)
    truncated = int(answer.metrics.get("truncated", 0))
    if truncated and not any(" cut " in warning for warning in found):
        found.append(f"{truncated} of {len(answer.texts)} texts were longer than the model reads, and were cut")
    return "".join(f'<p class="e5-warning">{sentence(text)}</p>' for text in found)


FACTS = (
    ("texts", "Texts", ""),
    ("input_tokens", "Tokens", ""),
    ("truncated", "Cut texts", ""),
    ("batch_texts", "Texts in the shared batch", ""),
    ("tokenize_ms", "Tokenizing", "ms"),
    ("queued_ms", "Waiting", "ms"),
    ("model_ms", "Model", "ms"),
    ("encode_ms", "Encoding", "ms"),
    ("predict_time", "Prediction", "s"),
)


def _facts(answer: Answer, seconds: float) -> str:
    """The server's metrics, and the round trip as this page saw it."""
    entries = []
    for name, label, unit in FACTS:
        if name in answer.metrics:
            value = answer.metrics[name]
            words = {"": f"{value:,.0f}", "ms": milliseconds(value), "s": milliseconds(value * 1e3)}
            entries.append((label, words[unit]))
    entries.append(("Round trip", milliseconds(seconds * 1e3)))
    shown = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in entries)
    return f'<dl class="e5-facts">{shown}</dl>'


def _scale(scores: Scores) -> tuple[float, float]:
    return (NARROW if np.nanmin(scores) >= NARROW else 0.0), 100.0


def _share(value: float, low: float, high: float) -> int:
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))))


def _header(text: str, scope: str, index: int) -> str:
    return f'<th scope="{scope}" title="{title(text)}"><span><small>{index + 1}</small> {short(text, 60)}</span></th>'
