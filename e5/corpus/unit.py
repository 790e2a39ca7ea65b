"""Embed one unit: a pure function of the plan. Its three steps run side by side for consecutive units."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from e5 import prompts
from e5.corpus import parts
from e5.corpus.parts import Folder, Footer
from e5.corpus.plan import Options, Plan
from e5.corpus.rows import read
from e5.corpus.sources import check_unchanged
from e5.embedder import Embedder, normalize
from e5.errors import InputError
from e5.inputs import check_text
from e5.tokens import Tokens
from e5.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Prepared:
    """A unit's texts as tokens. `rows`: their places in the file.

    `rejected`: (id, reason) of rows that cannot be embedded. `spans`: for windows, the characters of each text that
    each of its windows covers.
    """

    unit: int
    ids: list[str]
    rows: list[int]
    tokens: Tokens
    rejected: list[tuple[str, str]]
    spans: list[list[tuple[int, int]]] | None = None


@dataclass(frozen=True)
class Receipt:
    """What a unit has brought: texts with vectors, rejected rows, tokens that the model read."""

    unit: int
    texts: int
    rejected: int
    tokens: int


def prepare(plan: Plan, unit: int, embedder: Embedder) -> Prepared:
    """Read and tokenize a unit. Rows without a text that can be embedded are rejected. Thread-safe.

    Raises CorpusError if the input has changed.
    """
    part, options = plan.units[unit], plan.options
    check_unchanged(plan.files[part.file])
    ids: list[str] = []
    rows: list[int] = []
    texts: list[str] = []
    rejected: list[tuple[str, str]] = []
    for row in read(plan.files[part.file], part, options.columns):
        try:
            if row.problem is not None:
                raise InputError(row.problem)
            texts.append(check_text(options.columns.text, row.text))
            ids.append(row.id)
            rows.append(row.number)
        except InputError as error:
            rejected.append((row.id, str(error)))
    queries, documents = (texts, []) if options.side == "query" else ([], texts)
    split = options.long_texts in ("average", "windows")
    tokens = embedder.tokenize(queries, documents, options.task, "average" if split else "truncate")
    spans = _spans(plan, embedder, texts, tokens) if options.long_texts == "windows" else None
    if options.long_texts == "error" and tokens.truncated:
        reasons = {index: embedder.too_long(options.columns.text, tokens.lengths[index]) for index in tokens.truncated}
        rejected += [(ids[index], str(error)) for index, error in reasons.items()]
        kept = [index for index in range(len(ids)) if index not in reasons]
        ids, rows = [ids[index] for index in kept], [rows[index] for index in kept]
        tokens = Tokens([tokens.ids[index] for index in kept], [tokens.lengths[index] for index in kept])
    return Prepared(unit, ids, rows, tokens, rejected, spans)


def _spans(plan: Plan, embedder: Embedder, texts: list[str], tokens: Tokens) -> list[list[tuple[int, int]]]:
    """The characters that each window of each text covers."""
    kind, options = embedder.model.prompt, plan.options
    is_query = options.side == "query"
    prompt = prompts.query_prompt(kind, options.task, "") if is_query else prompts.document_prompt(kind, "")
    return [
        embedder.tokenizer.spans(text, prompt, windows) if len(windows) > 1 else [(0, len(text))]
        for text, windows in zip(texts, tokens.weights or (), strict=True)
    ]


def compute(prepared: Prepared, plan: Plan, embedder: Embedder) -> Vectors:
    """The vectors of a prepared unit: float32 [N, D], N texts or windows."""
    tokens = prepared.tokens
    if prepared.spans is not None:  # each window as a text of its own
        tokens = Tokens(tokens.ids, [len(ids) for ids in tokens.ids])
    vectors = embedder.embed_tokens(tokens)
    return normalize(vectors) if plan.options.normalize else vectors


def table(prepared: Prepared, vectors: Vectors, options: Options) -> pa.Table:
    """The rows of a unit: `parts.table_of` says which columns they have."""
    owners: Sequence[int] = range(len(prepared.ids))
    spans = None
    if prepared.spans is not None:
        owners = [index for index, windows in enumerate(prepared.spans) for _ in windows]
        spans = [span for windows in prepared.spans for span in windows]
    return parts.table_of(
        [prepared.ids[index] for index in owners],
        vectors,
        options.vectors,
        [prepared.tokens.lengths[index] for index in owners],
        prepared.tokens.truncated,
        [prepared.rows[index] for index in owners],
        spans,
    )


def write(prepared: Prepared, vectors: Vectors, plan: Plan, folder: Folder) -> Receipt:
    """Write the unit's files. The part comes last, because with it the unit is done. Raises CorpusError."""
    texts, rejected = len(prepared.ids), len(prepared.rejected)
    records = plan.units[prepared.unit].records
    footer = Footer(plan.id, prepared.unit, records, texts, len(vectors), rejected)
    if rejected:
        folder.write(parts.rejected_name(plan.id, prepared.unit), parts.rejected_table(prepared.rejected, footer))
    rows = table(prepared, vectors, plan.options).replace_schema_metadata(footer.to_metadata())
    folder.write(parts.part_name(plan.id, prepared.unit), rows)
    return Receipt(prepared.unit, texts, rejected, prepared.tokens.total)


def texts_of(plan: Plan, unit: int) -> dict[int, str]:
    """The texts of a unit by their places in the file, read from the input again. Raises CorpusError if it changed."""
    part = plan.units[unit]
    check_unchanged(plan.files[part.file])
    rows = read(plan.files[part.file], part, plan.options.columns)
    return {row.number: row.text for row in rows if isinstance(row.text, str)}
