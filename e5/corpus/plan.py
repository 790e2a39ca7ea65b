"""The plan of a run: what to embed, how, and in which units. It is written to plan.json in the output folder.

Everything that vectors depend on is part of the plan's id: the model and its weights, dtype, limits, prompts and the
input's versions. Output files carry the id, so files of different plans never mix.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Self

from e5 import catalog
from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, VectorType
from e5.corpus.rows import Columns, Range, cut
from e5.corpus.sources import SourceFile, check_same, find
from e5.prompts import DEFAULT_TASK

FILE = "plan.json"
VERSION = 1
UNIT_SECONDS = 60
FLOPS = {"cpu": 1e11, "cuda": 5e14}
"""What two cores and one H100 or H200 compute a second, roughly: the size of a unit need not be exact."""
MIN_UNIT_TOKENS, MAX_UNIT_TOKENS = 20_000, 3_000_000
BYTES_PER_TOKEN = 4
"""Of English. Other languages have more tokens for their bytes, so their units take longer."""
UNIT_VECTOR_BYTES = 2**28
"""Of a unit's vectors in float32, three times in memory: short texts have more vectors than tokens suggest."""
Side = Literal["document", "query"]
LongTexts = Literal["truncate", "error", "average", "windows"]
"""As in the library; windows: a vector for each window of a long text, with the characters that it covers."""


@dataclass(frozen=True)
class Identity:
    """A model as vectors depend on it. `weights`: a digest of its files. `max_tokens`: special tokens included."""

    model: str
    weights: str
    prompt: str
    pooling: str
    special_tokens: tuple[str, str] | None
    dtype: str
    dimensions: int
    max_tokens: int


@dataclass(frozen=True)
class Options:
    """How to embed."""

    identity: Identity
    side: Side = "document"
    task: str = DEFAULT_TASK
    long_texts: LongTexts = "truncate"
    vectors: VectorType = "float32"
    normalize: bool = False
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True)
class Plan:
    """`id`: the first 16 hex digits of the SHA-256 of all the rest."""

    options: Options
    files: tuple[SourceFile, ...]
    units: tuple[Range, ...]
    id: str = ""

    @property
    def records(self) -> int:
        """At most: blank lines count."""
        return sum(unit.records for unit in self.units)

    def to_json(self) -> str:
        return json.dumps({"id": self.id} | self._content(), indent=1)

    def digest(self) -> str:
        """What the id has to be."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()[:16]

    def _content(self) -> dict[str, Any]:
        units = [[getattr(unit, each.name) for each in fields(Range)] for unit in self.units]
        files = [asdict(file) for file in self.files]
        return {"version": VERSION, "options": asdict(self.options), "files": files, "units": units}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises CorpusError for a file that no plan has written, or another version."""
        try:
            content: dict[str, Any] = json.loads(text)
            options = dict(content["options"])
            columns, identity = Columns(**options.pop("columns")), options.pop("identity")
            tokens = identity.pop("special_tokens")
            identity = Identity(**identity, special_tokens=None if tokens is None else tuple(tokens))
            files = tuple(SourceFile(**file) for file in content["files"])
            units = tuple(Range(*unit) for unit in content["units"])
            plan = cls(Options(identity, **options, columns=columns), files, units, content["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{FILE} is not a plan of this version ({error!r}): use another --out") from None
        if plan.digest() != plan.id:
            raise CorpusError(f"{FILE} has been changed: use another --out")
        return plan


class UnitSize(NamedTuple):
    """About how many bytes of text a unit has, and at most how many records."""

    bytes: int
    records: int


def unit_size(model: catalog.Model, device: str) -> UnitSize:
    """What takes about a minute on one device: 2 FLOP a token and weight, 12 × D² weights a layer."""
    dimensions = max(64, model.dimensions)
    weights = 12 * max(1, model.layers) * dimensions**2
    tokens = min(max(UNIT_SECONDS * FLOPS[device] / (2 * weights), MIN_UNIT_TOKENS), MAX_UNIT_TOKENS)
    return UnitSize(int(BYTES_PER_TOKEN * tokens), UNIT_VECTOR_BYTES // (4 * dimensions))


def make(options: Options, inputs: list[str], size: UnitSize, without: str | None = None) -> Plan:
    """Plan the input in units of this size, `without` files below a folder. Raises CorpusError."""
    files = find(inputs, without)
    units = [unit for index, file in enumerate(files) for unit in cut(index, file, options.columns, *size)]
    if not units:
        raise CorpusError("the input has no rows")
    plan = Plan(options, tuple(files), tuple(units))
    return replace(plan, id=plan.digest())


def load(folder: Folder) -> Plan | None:
    """The plan of an output folder; None if it has none. Raises CorpusError."""
    text = folder.read_text(FILE)
    return None if text is None else Plan.from_json(text)


def settle(folder: Folder, options: Options, inputs: list[str], size: UnitSize) -> Plan:
    """The folder's plan, made and written if it has none. Raises CorpusError if it has another one.

    Of several processes that start at the same time, one writes the plan and all read it.
    """
    known = load(folder)
    if known is None:
        folder.write_new(FILE, make(options, inputs, size, folder.full_url).to_json().encode())
        known = load(folder)
        assert known is not None
    check(known, options, inputs, folder.full_url)
    return known


def check(plan: Plan, options: Options, inputs: list[str], without: str | None = None) -> None:
    """Raise CorpusError unless the plan is one for these options and for the input as it is now."""
    for name, planned in _flat(plan.options).items():
        if planned != (now := _flat(options)[name]):
            raise CorpusError(f"the folder's plan has {name}={planned!r}, this run {now!r}: use another --out")
    check_input(plan, find(inputs, without))


def _flat(options: Options) -> dict[str, Any]:
    values: dict[str, Any] = asdict(options)
    columns = {f"{name} column": value for name, value in values.pop("columns").items()}
    return {**values.pop("identity"), **columns, **values}


def check_input(plan: Plan, files: list[SourceFile]) -> None:
    """Raise CorpusError unless these are the plan's files, unchanged."""
    now, planned = ({file.url: file for file in each} for each in (files, plan.files))
    for url in sorted(now.keys() ^ planned.keys()):
        state = "is not part of the folder's plan" if url in now else "of the folder's plan is missing"
        raise CorpusError(f"{url} {state}: use another --out")
    for url, file in planned.items():
        check_same(now[url], file)
