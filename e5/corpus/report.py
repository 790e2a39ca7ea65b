"""How far a run is, from the files alone, and whether everything is there at its end."""

import json
import time
from dataclasses import dataclass

from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, footer_of, part_name, read_part, read_rejected, rejected_name
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
        footers = [footer for unit in units if (footer := footer_of(folder, plan.id, unit, plan.units[unit].records))]
        counts = (sum(getattr(footer, name) for footer in footers) for name in ("texts", "vectors", "rejected"))
        return cls(len(plan.units), len(footers), *counts)


def finish(plan: Plan, folder: Folder) -> Status:
    """Read every file, compare its checksums, and write manifest.json.

    A damaged file is removed, so that the next run makes it again. Raises CorpusError if a unit is missing or damaged,
    and OSError, without removing anything, if the file system does not answer.
    """
    present = folder.names()
    states = [_state(plan, folder, unit, present) for unit in range(len(plan.units))]
    for unit, state in enumerate(states):
        if state == "damaged":
            folder.remove(part_name(plan.id, unit))
    if counts := [f"{states.count(state):,} {state}" for state in ("missing", "damaged") if state in states]:
        raise CorpusError(f"of {len(plan.units):,} units {' and '.join(counts)}: start the run again")
    status = Status.of(plan, folder)
    content = {
        "plan": plan.id,
        "texts": status.texts,
        "vectors": status.vectors,
        "rejected": status.rejected,
        "parts": [part_name(plan.id, unit) for unit in range(len(plan.units))],
        "rejected_parts": sorted(present & {rejected_name(plan.id, unit) for unit in range(len(plan.units))}),
        "options": json.loads(plan.to_json())["options"],
    }
    folder.remove(MANIFEST)
    folder.write_new(MANIFEST, json.dumps(content, indent=1).encode())
    return status


def _state(plan: Plan, folder: Folder, unit: int, present: set[str]) -> str:
    """Whole, missing or damaged: a unit's part, and the file of its rejected rows."""
    if part_name(plan.id, unit) not in present:
        return "missing"
    footer = footer_of(folder, plan.id, unit, plan.units[unit].records)
    if footer is None:
        return "damaged"
    try:
        read_part(folder, plan.id, unit)
        if footer.rejected and len(read_rejected(folder, plan.id, unit)) != footer.rejected:
            return "damaged"
    except (CorpusError, FileNotFoundError):
        return "damaged"
    return "whole"


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
