"""Exact search in the vectors of a run, for a person who looks at the result: ranked rows with their texts."""

import contextlib
from dataclasses import dataclass

import numpy as np

from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, read_part, to_vectors
from e5.corpus.plan import Plan
from e5.corpus.report import Status
from e5.corpus.unit import texts_of
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
        ids, places = table.column("id"), table.column("row")
        top = np.argsort(-values, kind="stable")[:count]
        found = ((float(values[row]), unit, places[row].as_py(), ids[row].as_py()) for row in top.tolist())
        best = sorted([*best, *found], key=_order)[:count]
    if not best:
        done = Status.of(plan, folder)
        raise CorpusError(f"{folder.url} has no vectors: {done.done} of {done.units} units are done")
    texts: dict[int, dict[int, str]] = {}
    with contextlib.suppress(OSError, CorpusError):  # the input is gone
        texts = {unit: texts_of(plan, unit) for unit in {hit[1] for hit in best}}
    return [Hit(score, name, texts.get(unit, {}).get(place)) for score, unit, place, name in best]


def _order(hit: tuple[float, int, int, str]) -> tuple[float, int, int]:
    return -hit[0], hit[1], hit[2]
