"""What a check found out about one property of a server."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["right", "wrong", "unknown"]


@dataclass(frozen=True)
class Finding:
    """`cure`: what to do if the status is not right, "" if there is nothing to do."""

    name: str
    status: Status
    evidence: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"{self.status:<8}{self.name:<20}{self.evidence}"
        return f"{line}\n{'':28}→ {self.cure}" if self.cure else line


def right(name: str, evidence: str) -> Finding:
    return Finding(name, "right", evidence)


def wrong(name: str, evidence: str, cure: str) -> Finding:
    return Finding(name, "wrong", evidence, cure)


def unknown(name: str, evidence: str, cure: str = "") -> Finding:
    return Finding(name, "unknown", evidence, cure)
