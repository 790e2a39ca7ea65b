"""Exact search in the vectors of a run, for a person who looks at the result: ranked rows with their texts."""

from dataclasses import dataclass

import numpy as np

from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, read_part, to_vectors
from e5.corpus.plan import Plan
from e5.corpus.report import Status
from e5.corpus.sources import read
from e5.embedder import scores
from e5.vectors import Vectors


@dataclass(frozen=True)
class Hit:
    """`score`: 100 × cosine. `text`: None if the input is gone."""

    score: float
    id: str
    text: str | None


def search(plan: Plan, folder: Folder, vector: Vectors, count: int) -> list[Hit]:
    """The rows nearest to a vector [D], the best first. Reads all vectors. Raises CorpusError if there are none."""
    best: list[tuple[float, int, int, str]] = []
    for unit in range(len(plan.units)):
        try:
            table = read_part(folder, plan.id, unit)
        except FileNotFoundError:
            continue
        if not table.num_rows:
            continue
        values = scores(vector[None], to_vectors(table, plan.options.vectors))[0]
        ids = table.column("id")
        top = np.argsort(-values, kind="stable")[:count]
        best = sorted([*best, *((float(values[row]), unit, int(row), ids[row].as_py()) for row in top)], key=_order)[
            :count
        ]
    if not best:
        done = Status.of(plan, folder)
        raise CorpusError(f"{folder.url} has no vectors: {done.done} of {done.units} units are done")
    texts = {unit: _texts(plan, unit) for unit in {hit[1] for hit in best}}
    return [Hit(score, name, texts[unit].get(name)) for score, unit, _, name in best]


def _order(hit: tuple[float, int, int, str]) -> tuple[float, int, int]:
    return -hit[0], hit[1], hit[2]


def _texts(plan: Plan, unit: int) -> dict[str, str]:
    """The texts of a unit by id, read from the input again."""
    part = plan.units[unit]
    try:
        rows = read(plan.files[part.file], part, plan.options.columns)
        return {row.id: row.text for row in rows if isinstance(row.text, str)}
    except (OSError, CorpusError):
        return {}
