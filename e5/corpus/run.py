"""Do units of a plan in this process.

While the device computes one unit, a thread reads and tokenizes the next, and another writes the last.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from e5.corpus import unit as steps
from e5.corpus.errors import CorpusError
from e5.corpus.parts import Folder, footer_of, part_name
from e5.corpus.plan import Plan
from e5.corpus.unit import Prepared, Receipt
from e5.embedder import Embedder

log = logging.getLogger(__name__)
TRIES = 3
"""Of a unit."""


def pending(plan: Plan, folder: Folder, shard: int = 0, shards: int = 1) -> list[int]:
    """The units of a share that are not done, as far as the footers of their files say."""
    present = folder.names()
    return [
        unit
        for unit in range(shard, len(plan.units), shards)
        if part_name(plan.id, unit) not in present or footer_of(folder, plan.id, unit, plan.units[unit].records) is None
    ]


def run(
    plan: Plan,
    folder: Folder,
    embedder: Embedder,
    units: Sequence[int],
    report: Callable[[Receipt], None],
    *,
    one_by_one: bool = False,
) -> dict[int, str]:
    """Do these units, and return the last error of each that failed TRIES times; `report` is called after the others.

    A unit that fails is tried again at the end. `one_by_one`: finish a unit before the next is read. Raises CorpusError
    for what concerns the whole run, such as a full disk or an input that is gone.
    """

    def attempt(queue: Sequence[int]) -> Results:
        for part in [[unit] for unit in queue] if one_by_one else [queue]:
            yield from pipeline(plan, folder, embedder, part)

    return with_tries(units, attempt, report)


Results = Iterator[tuple[int, Receipt | Exception]]


def with_tries(
    units: Sequence[int], attempt: Callable[[Sequence[int]], Results], report: Callable[[Receipt], None]
) -> dict[int, str]:
    """Attempt units until each has a receipt or has failed TRIES times; returns the last error of the latter."""
    failures: dict[int, str] = {}
    tries = Counter[int]()
    queue = list(units)
    while queue:
        failed: list[int] = []
        for unit, result in attempt(queue):
            if isinstance(result, Receipt):
                report(result)
                continue
            tries[unit] += 1
            log.warning("unit %d failed (%d of %d): %s: %s", unit, tries[unit], TRIES, type(result).__name__, result)
            if tries[unit] < TRIES:
                failed.append(unit)
            else:
                failures[unit] = f"{type(result).__name__}: {result}"
        queue = failed
    return failures


def pipeline(plan: Plan, folder: Folder, embedder: Embedder, units: Sequence[int]) -> Results:
    """Each unit's receipt or error. At most three units are in memory."""
    with ThreadPoolExecutor(1, "prepare") as preparing, ThreadPoolExecutor(1, "write") as writing:
        following: Future[Prepared] | None = None
        last: tuple[int, Future[Receipt]] | None = None
        for place, unit in enumerate(units):
            current = following or preparing.submit(steps.prepare, plan, unit, embedder)
            following = None
            if place + 1 < len(units):
                following = preparing.submit(steps.prepare, plan, units[place + 1], embedder)
            try:
                prepared = current.result()
                vectors = steps.compute(prepared, plan, embedder)
            except CorpusError:
                raise
            except Exception as error:
                yield unit, error
                continue
            if last:
                yield last[0], _result(last[1])
            last = unit, writing.submit(steps.write, prepared, vectors, plan, folder)
        if last:
            yield last[0], _result(last[1])


def _result(future: Future[Receipt]) -> Receipt | Exception:
    try:
        return future.result()
    except CorpusError:
        raise
    except Exception as error:
        return error
