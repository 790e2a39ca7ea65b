"""Published scores of E5 models, each with its source and the protocol that made it."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """`score`: times 100, as on the leaderboard. `source`: "card", or the run that produced it.

    `comparable`: False for a re-run by an older mteb, whose loader embedded in another way (published.json says how).
    """

    score: float
    source: str
    comparable: bool


@cache
def _scores() -> dict[str, dict[str, dict[str, tuple[float, str, str]]]]:
    file: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
    scores: dict[str, dict[str, dict[str, tuple[float, str, str]]]] = file["scores"]
    return scores


def find(task: str, split: str, model: str, protocol: str) -> Published | None:
    """The published score of a model on a task's split, or None if there is none of this protocol."""
    entry = _scores().get(task, {}).get(split, {}).get(model)
    if entry is None or entry[2].partition(" ")[0] != protocol:
        return None
    return Published(score=entry[0], source=entry[1], comparable=entry[2] == protocol)
