"""Embed one unit: a pure function of the plan. Its three steps run side by side for consecutive units."""

from dataclasses import dataclass

from e5.corpus import parts
from e5.corpus.parts import Folder, Footer
from e5.corpus.plan import Plan
from e5.corpus.sources import read
from e5.embedder import Embedder, normalize
from e5.errors import InputError
from e5.inputs import LongTexts, check_text
from e5.tokens import Tokens
from e5.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Prepared:
    """A unit's texts as tokens. `rejected`: (id, reason) of rows that cannot be embedded."""

    unit: int
    ids: list[str]
    tokens: Tokens
    rejected: list[tuple[str, str]]


@dataclass(frozen=True)
class Receipt:
    """What a unit has brought: rows with vectors, rejected rows, tokens that the model read."""

    unit: int
    rows: int
    rejected: int
    tokens: int


def prepare(plan: Plan, unit: int, embedder: Embedder) -> Prepared:
    """Read and tokenize a unit. Rows without a text that can be embedded are rejected. Thread-safe."""
    part, options = plan.units[unit], plan.options
    ids: list[str] = []
    texts: list[str] = []
    rejected: list[tuple[str, str]] = []
    for row in read(plan.files[part.file], part, options.columns):
        try:
            if row.problem is not None:
                raise InputError(row.problem)
            texts.append(check_text(options.columns.text, row.text))
            ids.append(row.id)
        except InputError as error:
            rejected.append((row.id, str(error)))
    queries, documents = (texts, []) if options.side == "query" else ([], texts)
    long_texts: LongTexts = "average" if options.long_texts == "average" else "truncate"
    tokens = embedder.tokenize(queries, documents, options.task, long_texts)
    if options.long_texts == "error" and tokens.truncated:
        reasons = {index: embedder.too_long(options.columns.text, tokens.lengths[index]) for index in tokens.truncated}
        rejected += [(ids[index], str(error)) for index, error in reasons.items()]
        kept = [index for index in range(len(ids)) if index not in reasons]
        ids = [ids[index] for index in kept]
        tokens = Tokens([tokens.ids[index] for index in kept], [tokens.lengths[index] for index in kept])
    return Prepared(unit, ids, tokens, rejected)


def compute(prepared: Prepared, plan: Plan, embedder: Embedder) -> Vectors:
    """The vectors of a prepared unit: float32 [N, D]."""
    vectors = embedder.embed_tokens(prepared.tokens)
    return normalize(vectors) if plan.options.normalize else vectors


def write(prepared: Prepared, vectors: Vectors, plan: Plan, folder: Folder) -> Receipt:
    """Write the unit's files. The part comes last, because with it the unit is done. Raises CorpusError."""
    rows, rejected = len(prepared.ids), len(prepared.rejected)
    footer = Footer(plan.id, prepared.unit, rows + rejected, rejected)
    if rejected:
        folder.write(parts.rejected_name(plan.id, prepared.unit), parts.rejected_table(prepared.rejected, footer))
    table = parts.table_of(
        prepared.ids, vectors, plan.options.vectors, prepared.tokens.lengths, prepared.tokens.truncated, footer
    )
    folder.write(parts.part_name(plan.id, prepared.unit), table)
    return Receipt(prepared.unit, rows, rejected, prepared.tokens.total)
