"""One progress bar for all tasks: tokens per second, and the time left."""

from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts tokens as they are computed. The bar counts characters, which are known before."""

    def __init__(self, characters: int | None, *, show: bool = True) -> None:
        """`characters`: of all texts of all tasks, None if unknown."""
        self._bar = tqdm(
            total=characters,
            disable=not show,
            bar_format="{desc}{percentage:3.0f} % |{bar}| {postfix} {elapsed} passed, {remaining} left",
        )
        self.tokens, self.seconds = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def name(self, task: str) -> None:
        """Show which task is running."""
        self._bar.set_description_str(f"{task}: ")

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
        self._bar.refresh()
