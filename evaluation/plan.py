"""What an evaluation will take: texts, tokens, hours on this device, disk. Measured for a few seconds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from e5 import tasks
from evaluation.backends import Backend
from evaluation.cache.vector_cache import row_bytes
from evaluation.encoder import stored_dtype
from evaluation.protocols import Prompt
from evaluation.sizes import Size

MEASURED_SECONDS = 2.0
MOST_TEXTS = 4096
ENGLISH = [tasks.instruction(name) for name in tasks.names()]
"""Texts to measure with, where the data are not here."""


@dataclass(frozen=True)
class Row:
    """The plan of one task. None: unknown."""

    task: str
    texts: int | None
    tokens: int | None
    hours: float | None
    disk_bytes: int | None


def plan(sizes: dict[str, Size | None], prompts: dict[str, Prompt], backend: Backend) -> list[Row]:
    """One row for each task. `prompts`: the prompt of most of its texts.

    What earlier runs have left in the cache is not subtracted. Of data that are not here only the mean length is known.
    """
    clock = _Clock(backend)
    rows = []
    for name, size in sizes.items():
        if size is None or not size.count:
            rows.append(Row(name, None, None, None, None))
            continue
        sample = size.sample or _english(size.characters // size.count)
        tokens = round(backend.prepare(sample, prompts[name]).tokens / len(sample) * size.count)
        hours = tokens / clock.tokens_per_second(sample, prompts[name], tokens) / 3600
        disk_bytes = size.count * row_bytes(backend.dimensions, stored_dtype(backend))
        rows.append(Row(name, size.count, tokens, hours, disk_bytes))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The plan as text, with totals."""
    lines = [f"{'task':<40} {'texts':>12} {'tokens':>15} {'hours':>8} {'disk':>9}"]
    for row in [*rows, _total(rows)]:
        cells = (
            f"{row.task:<40}",
            f"{'?' if row.texts is None else f'{row.texts:,}':>12}",
            f"{'?' if row.tokens is None else f'{row.tokens:,}':>15}",
            f"{'?' if row.hours is None else f'{row.hours:,.2f}':>8}",
            f"{'?' if row.disk_bytes is None else f'{row.disk_bytes / 1e9:,.2f} GB':>9}",
        )
        lines.append(" ".join(cells))
    return "\n".join(lines)


def hours(rows: Sequence[Row]) -> float:
    """Of all tasks whose size is known."""
    return sum(row.hours or 0 for row in rows)


def _total(rows: Sequence[Row]) -> Row:
    return Row(
        "total",
        sum(row.texts or 0 for row in rows),
        sum(row.tokens or 0 for row in rows),
        hours(rows),
        sum(row.disk_bytes or 0 for row in rows),
    )


def _english(characters: int) -> list[str]:
    """Texts of about so many characters."""
    sentences = " ".join(ENGLISH * (2 + characters // 2500))  # 5,345 characters each time: the last text is as long
    return [sentences[start : start + max(1, characters)] for start in range(0, 6400, 100)]


class _Clock:
    """Tokens per second of texts of about one length, each length measured once."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.speeds: dict[int, float] = {}

    def tokens_per_second(self, sample: Sequence[str], prompt: Prompt, most: int) -> float:
        """Measured on texts like the sample: for two seconds, or on as many tokens as the task has."""
        length = int(sum(map(len, sample)) / len(sample)).bit_length()
        if length not in self.speeds:
            self.speeds[length] = self._measure(sample, prompt, most)
        return self.speeds[length]

    def _measure(self, sample: Sequence[str], prompt: Prompt, most: int) -> float:
        """Embed twice as many texts each time. The first call, which may compile kernels, does not count."""
        self._embed(sample, prompt, 1)
        count, tokens, seconds = 1, 0, 0.0
        while seconds < MEASURED_SECONDS and tokens < most:
            count = min(2 * count, MOST_TEXTS)
            started = time.perf_counter()
            tokens += self._embed(sample, prompt, count)
            seconds += time.perf_counter() - started
        return tokens / seconds

    def _embed(self, sample: Sequence[str], prompt: Prompt, count: int) -> int:
        prepared = self.backend.prepare([sample[index % len(sample)] for index in range(count)], prompt)
        self.backend.compute(prepared)
        return prepared.tokens
