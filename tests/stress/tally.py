"""What a part of the fault injection counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """The cases of one kind of fault: what the user saw of them, and those that went wrong."""

    fault: str
    seen: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.seen.values())

    @property
    def wrong(self) -> list[str]:
        return self.lost + self.silent + self.tracebacks

    def as_json(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "cases": self.cases,
            "seen": dict(self.seen.most_common()),
            "lost": self.lost,
            "silent": self.silent,
            "tracebacks": self.tracebacks,
        }
