"""The result of a run as one Lance table with its texts and an index, which LanceDB opens as well."""

from collections.abc import Iterator
from typing import Any

import lance
import pyarrow as pa

from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, read_part
from e5.corpus.plan import Plan
from e5.corpus.search import Hit
from e5.corpus.unit import texts_of
from e5.vectors import Vectors

MIN_INDEXED = 10_000
"""Rows below which an exact search takes milliseconds."""
PLAN = "e5.plan"


def write_table(plan: Plan, folder: Folder, url: str) -> int:
    """Write a finished run to a new table, in one commit, and index it; returns its rows.

    A table of the same plan is left as it is. Raises CorpusError for a table of something else, and for vectors that an
    index does not take.
    """
    if plan.options.vectors not in ("float32", "float16"):
        raise CorpusError(f"a Lance index needs float vectors, not {plan.options.vectors}: run with --vectors float16")
    if (table := _existing(url)) is None:
        first = read_part(folder, plan.id, 0)
        schema = pa.schema([first.schema.field("id"), first.schema.field("vector"), pa.field("text", pa.string())])
        schema = schema.with_metadata({PLAN: plan.id})
        reader = pa.RecordBatchReader.from_batches(schema, _batches(plan, folder, schema))
        table = lance.write_dataset(reader, url, mode="create")
    _check(plan, table, url)
    rows = int(table.count_rows())
    if rows >= MIN_INDEXED and not table.list_indices():
        dimensions = plan.options.identity.dimensions
        table.create_index(
            "vector",
            "IVF_PQ",
            metric="cosine",
            num_partitions=max(1, round(rows**0.5)),
            num_sub_vectors=max(1, dimensions // 16),
        )
    return rows


def nearest(plan: Plan, url: str, vector: Vectors, count: int) -> list[Hit]:
    """The rows nearest to a vector [D], the best first. Raises CorpusError for a table of something else."""
    table = _existing(url)
    if table is None:
        raise CorpusError(f"{url} is not a Lance table")
    _check(plan, table, url)
    asked = {"column": "vector", "q": vector, "k": count, "metric": "cosine", "refine_factor": 10}
    found = table.to_table(columns=["id", "text", "_distance"], nearest=asked).to_pylist()
    return [Hit(100 * (1 - row["_distance"]), row["id"], row["text"]) for row in found]


def _check(plan: Plan, table: Any, url: str) -> None:
    if (table.schema.metadata or {}).get(PLAN.encode(), b"").decode() != plan.id:
        raise CorpusError(f"{url} is a table of something else: name another one")


def _existing(url: str) -> Any:
    try:
        return lance.dataset(url)
    except (ValueError, OSError):
        return None


def _batches(plan: Plan, folder: Folder, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Every part with the texts of its rows, which are read from the input again."""
    for unit in range(len(plan.units)):
        part, texts = read_part(folder, plan.id, unit), texts_of(plan, unit)
        # A window of a text covers a part of it.
        spans = part.select([name for name in ("row", "start", "end") if name in part.column_names]).to_pylist()
        covered = [texts[span["row"]][span.get("start", 0) : span.get("end")] for span in spans]
        table = part.select(["id", "vector"]).append_column("text", pa.array(covered, pa.string()))
        yield from table.cast(schema).to_batches()
