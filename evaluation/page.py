"""An evaluation's report as one HTML page: no script, nothing loaded from elsewhere, light and dark.

`render` takes the report that scripts/evaluate.py writes as JSON. A fact that the report lacks, or that is null, is
shown as a dash or left out.
"""

import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

Report = Mapping[str, Any]

STYLE = Path(__file__).with_name("page.css")
NONE = "–"
FACTS = ("revision", "device", "dtype", "max_tokens", "vectors", "server", "date")
LABELS = {"max_tokens": "token limit"}
COLUMNS = {"Task": "task", "Metric": "metric", "Ours": "number", "Published": "number", "Difference": "number"}
COLUMNS |= {"Tolerance": "tolerance", "Texts": "number", "Time": "number", "Source": "source"}
"""The heads of the table, and the CSS class of each column."""


def render(report: Report) -> str:
    """The complete page. Scores are percentages; bars begin at 0 and end at 100, or at the largest score above it."""
    title = f"{_text(report.get('model'))} · {_text(report.get('protocol'))}"
    tasks: Report = report.get("tasks") or {}
    sections = [
        f"<h1>{title}</h1>\n<dl>\n{_facts(report)}</dl>",
        *_section("Means", _means(report.get("benchmarks") or {})),
        *_section("Failed", _failures(report.get("failed") or {})),
        *_section("Tasks", _table(tasks)),
        *_section("Scores", _chart(tasks)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text('utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, content: str) -> Iterator[str]:
    if content:
        yield f"<section>\n<h2>{heading}</h2>\n{content}</section>"


def _facts(report: Report) -> str:
    facts = {LABELS.get(name, name): _text(report[name]) for name in FACTS if report.get(name) is not None}
    versions: Report = report.get("versions") or {}
    if versions:
        facts["versions"] = ", ".join(f"{_text(name)} {_text(version)}" for name, version in versions.items())
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in facts.items())


def _means(benchmarks: Report) -> str:
    means = "".join(
        f'<div class="mean"><strong>{_text(name)}</strong>: mean {_score(each.get("mean"))}, published '
        f"{_score(each.get('published'))}<small>{_whole(each.get('tasks'))} of {_whole(each.get('of'))} tasks</small>"
        "</div>\n"
        for name, each in benchmarks.items()
    )
    return means and f'<div class="means">\n{means}</div>\n'


def _table(tasks: Report) -> str:
    if not tasks:
        return ""
    head = "".join(f'<th scope="col" class="{style}">{name}</th>' for name, style in COLUMNS.items())
    rows = "".join(_row(name, task) for name, task in tasks.items())
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"


def _row(name: str, task: Report) -> str:
    kind = [
        task.get("type"),
        task.get("split") and f"{task['split']} split",
        task.get("data") and f"{task['data']} data",
    ]
    details = ", ".join(_text(each) for each in kind if each)
    truncated = f"<small>{_whole(task['truncated'])} truncated</small>" if task.get("truncated") else ""
    cells = {
        "Metric": _text(task.get("metric")),
        "Ours": f"<strong>{_score(task.get('main_score'))}</strong>",
        "Published": _score(task.get("published")),
        "Difference": _score(task.get("difference"), "+"),
        "Tolerance": _tolerance(task.get("within"), task.get("tolerance")),
        "Texts": _whole(task.get("texts")) + truncated,
        "Time": _time(task),
        "Source": _text(task.get("source")),
    }
    values = "".join(f'<td class="{COLUMNS[each]}" data-label="{each}">{value}</td>' for each, value in cells.items())
    return f'<tr><th scope="row" class="task">{_text(name)}<small>{details}</small></th>{values}</tr>\n'


def _tolerance(within: bool | None, tolerance: object) -> str:
    if within is None:
        return NONE
    name, word = ("good", "✓ within") if within else ("bad", "✗ beyond")
    return f'<span class="{name}">{word} ±{_text(tolerance)}</span>'


def _time(task: Report) -> str:
    tokens, seconds = task.get("tokens"), task.get("seconds")
    speed = f"<small>{tokens / seconds:,.0f} tokens/s</small>" if tokens and seconds else ""
    return (f"{seconds:,.1f} s" if _is_number(seconds) else NONE) + speed


def _chart(tasks: Report) -> str:
    scores = [task.get(which) for task in tasks.values() for which in ("main_score", "published")]
    scale = max([100.0, *(score for score in scores if _is_number(score))])
    bars = "".join(_bars(name, task.get("main_score"), task.get("published"), scale) for name, task in tasks.items())
    legend = '<p class="legend"><span>ours</span><span class="published">published</span></p>\n'
    return bars and f"{legend}{bars}"


def _bars(name: str, ours: object, published: object, scale: float) -> str:
    label = f"{_text(name)}: ours {_score(ours)}, published {_score(published)}"
    bars = _bar("bar", ours, scale) + _bar("bar published", published, scale)
    return f'<div class="bars"><div>{_text(name)}</div><div role="img" aria-label="{label}">{bars}</div></div>\n'


def _bar(name: str, score: object, scale: float) -> str:
    share = 100 * max(score, 0) / scale if _is_number(score) else 0  # correlations can be negative
    return f'<div class="{name}"><i><b style="width:{share:.2f}%"></b></i><span>{_score(score)}</span></div>'


def _failures(failed: Report) -> str:
    items = "".join(f"<li><strong>{_text(name)}</strong>: {_text(reason)}</li>\n" for name, reason in failed.items())
    return items and f'<ul class="failed">\n{items}</ul>\n'


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _score(value: object, sign: str = "") -> str:
    """Two decimals, as papers print them; a true minus in front of a negative one."""
    return format(value, f"{sign}z.2f").replace("-", "−") if _is_number(value) else NONE


def _whole(value: object) -> str:
    return f"{value:,}" if _is_number(value) else NONE


def _text(value: object) -> str:
    return NONE if value is None else escape(str(value))
