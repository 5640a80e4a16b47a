"""What a part of the fault injection counts, and the table of all parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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


def as_markdown(tallies: Sequence[dict[str, Any]]) -> str:
    lines = ["| fault | cases | what the user sees | lost | silent errors | tracebacks |", "|---|---|---|---|---|---|"]
    for tally in tallies:
        seen = "; ".join(f"{what}: {count}" for what, count in tally["seen"].items())
        wrong = " | ".join(str(len(tally[kind])) for kind in ("lost", "silent", "tracebacks"))
        lines.append(f"| {tally['fault']} | {tally['cases']} | {seen} | {wrong} |")
    return "\n".join(lines)
