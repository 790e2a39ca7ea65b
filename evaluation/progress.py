"""One progress bar for all tasks: tokens per second, and the time left."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts tokens as they are computed. The bar counts characters, which are known before."""

    def __init__(self, characters: int | None, *, show: bool = True) -> None:
        """`characters`: of all texts of all tasks, None if unknown."""
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=characters,
            disable=not show,
            mininterval=0.5 if self._terminal else 60,  # in a log file, once a minute
            maxinterval=60,
            bar_format="{desc}{percentage:3.0f} % |{bar}|{postfix}, {elapsed} passed, {remaining} left",
        )
        self.tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def name(self, task: str) -> None:
        """Show which task is running."""
        self._bar.set_description_str(f"{task}: ", refresh=self._terminal)

    def add(self, characters: int, tokens: int) -> None:
        """Texts of so many characters and tokens have been computed."""
        self.tokens += tokens
        elapsed = self._bar.format_dict["elapsed"]
        self._bar.set_postfix_str(f"{self.tokens / elapsed if elapsed else 0:,.0f} tokens/s", refresh=False)
        self._bar.update(characters)

    def skip(self, characters: int) -> None:
        """Texts of so many characters need not be computed: their vectors were on disk."""
        if self._bar.total:
            self._bar.total = max(self._bar.n, self._bar.total - characters)
        if self._terminal:
            self._bar.refresh()
