"""The instructions that the E5 instruct models were trained and evaluated with, by data set.

Source: microsoft/unilm, `e5/utils.py`. Symmetric tasks (STS, duplicates, bitext mining) use the instruction on both
sides: embed both texts as queries.
"""

import json
from functools import cache
from importlib import resources

from e5.errors import InputError


@cache
def _table() -> dict[str, dict[str, str]]:
    file = json.loads(resources.files("e5").joinpath("tasks.json").read_text("utf-8"))
    tasks: dict[str, dict[str, str]] = file["tasks"]
    return tasks


def names(kind: str | None = None) -> tuple[str, ...]:
    """Names of the trained tasks, optionally of one kind only (see `kinds`)."""
    return tuple(name for name, task in _table().items() if kind is None or task["kind"] == kind)


def kinds() -> tuple[str, ...]:
    """Kinds of tasks: Retrieval, Classification, STS, …"""
    return tuple(dict.fromkeys(task["kind"] for task in _table().values()))


def instruction(name: str) -> str:
    """A task's instruction, to pass as `task`. Raises InputError for an unknown name, with similar names."""
    try:
        return _table()[name]["instruction"]
    except KeyError:
        similar = [known for known in _table() if name.lower() in known.lower()]
        raise InputError(f"no trained task is called {name!r}: choose one of {', '.join(similar or names())}") from None
