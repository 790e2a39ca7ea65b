"""The instructions that the E5 instruct models were trained and evaluated with, by the name of their data set.

Source: microsoft/unilm, `e5/utils.py`. Symmetric tasks (STS, duplicates, bitext mining) put the instruction on both
sides: embed both texts as queries.
"""

import json
from functools import cache
from importlib import resources

from e5.errors import InputError


@cache
def _table() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = json.loads(resources.files("e5").joinpath("tasks.json").read_text("utf-8"))[
        "tasks"
    ]
    return table


def names(kind: str | None = None) -> tuple[str, ...]:
    """Names of the trained tasks, all or of one kind (`kinds()`)."""
    return tuple(name for name, task in _table().items() if kind is None or task["kind"] == kind)


def kinds() -> tuple[str, ...]:
    """The kinds of task: Retrieval, Classification, STS, …"""
    return tuple(dict.fromkeys(task["kind"] for task in _table().values()))


def instruction(name: str) -> str:
    """The instruction of one task, to pass as `task`. Raises InputError with near names for an unknown one."""
    try:
        return _table()[name]["instruction"]
    except KeyError:
        near = [known for known in _table() if name.lower() in known.lower()]
        raise InputError(f"no trained task is called {name!r}: choose one of {', '.join(near or names())}") from None
