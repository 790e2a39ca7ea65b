"""How far a run is, from the files alone, and whether everything is there at its end."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, Footer, footer_of, part_name, read_part, read_rejected, rejected_name
from e5.corpus.plan import Plan

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Status:
    """Counts of a folder. `texts`: with vectors, `rejected`: rows without."""

    units: int
    done: int
    texts: int
    vectors: int
    rejected: int

    @classmethod
    def of(cls, plan: Plan, folder: Folder) -> "Status":
        """Read the footers of all parts."""
        present = folder.names()
        units = [unit for unit in range(len(plan.units)) if part_name(plan.id, unit) in present]
        return cls.count(plan, [footer for unit in units if (footer := _footer(plan, folder, unit))])

    @classmethod
    def count(cls, plan: Plan, footers: Sequence[Footer]) -> "Status":
        counts = (sum(getattr(footer, name) for footer in footers) for name in ("texts", "vectors", "rejected"))
        return cls(len(plan.units), len(footers), *counts)


def finish(plan: Plan, folder: Folder) -> Status:
    """Read every file, compare its checksums, and write manifest.json.

    A damaged file is removed, so that the next run makes it again. Raises CorpusError if a unit is missing or damaged,
    and OSError, without removing anything, if the file system does not answer.
    """
    present = folder.names()
    missing = [unit for unit in range(len(plan.units)) if part_name(plan.id, unit) not in present]
    there = [unit for unit in range(len(plan.units)) if part_name(plan.id, unit) in present]
    whole = {unit: footer for unit in there if (footer := _checked(plan, folder, unit))}
    damaged = [unit for unit in there if unit not in whole]
    for unit in damaged:
        folder.remove(part_name(plan.id, unit))
    counted = ((missing, "missing"), (damaged, "damaged"))
    if counts := [f"{len(units):,} {state}" for units, state in counted if units]:
        raise CorpusError(f"of {len(plan.units):,} units {' and '.join(counts)}: start the run again")
    status = Status.count(plan, list(whole.values()))
    content = {
        "plan": plan.id,
        "texts": status.texts,
        "vectors": status.vectors,
        "rejected": status.rejected,
        "parts": [part_name(plan.id, unit) for unit in whole],
        "rejected_parts": [rejected_name(plan.id, unit) for unit, footer in whole.items() if footer.rejected],
        "options": asdict(plan.options),
    }
    folder.remove(MANIFEST)
    folder.write_new(MANIFEST, json.dumps(content, indent=1).encode())
    return status


def _checked(plan: Plan, folder: Folder, unit: int) -> Footer | None:
    """The footer of a part if it and the file of its rejected rows are whole; None if one of them is damaged."""
    footer = _footer(plan, folder, unit)
    if footer is None:
        return None
    try:
        read_part(folder, plan.id, unit)
        if footer.rejected and len(read_rejected(folder, plan.id, unit)) != footer.rejected:
            return None
    except (CorpusError, FileNotFoundError):
        return None
    return footer


def _footer(plan: Plan, folder: Folder, unit: int) -> Footer | None:
    return footer_of(folder, plan.id, unit, plan.units[unit].records)


class Progress:
    """Texts, tokens a second and the time left, for a line every few seconds."""

    EVERY_SECONDS = 10.0

    def __init__(self, units: int, done: int) -> None:
        self.units, self.done = units, done
        self.texts = self.tokens = 0
        self.started = self.last = time.monotonic()
        self._before = done

    def add(self, texts: int, tokens: int) -> None:
        self.done, self.texts, self.tokens = self.done + 1, self.texts + texts, self.tokens + tokens

    @property
    def is_due(self) -> bool:
        """Whether a line is due now: at the end, and every few seconds."""
        now = time.monotonic()
        if self.done < self.units and now - self.last < self.EVERY_SECONDS:
            return False
        self.last = now
        return True

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        finished = self.done - self._before
        left = f", {duration((self.units - self.done) * seconds / finished)} left" if finished else ""
        return (
            f"{self.done:,} of {self.units:,} units, {self.texts:,} texts, {self.tokens / seconds:,.0f} tokens/s{left}"
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
