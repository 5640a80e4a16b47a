"""Print the tables of docs/robustness.md from the results of the long checks in benchmarks/results.

python tests/stress/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def faults(document: dict[str, Any]) -> list[str]:
    """Return the table of injected faults. Its numbers count cases."""
    lines = ["| fault | cases | what the user sees | lost | silent errors | tracebacks |", "|---|---|---|---|---|---|"]
    for tally in document["faults"]:
        seen = "; ".join(f"{what}: {count}" for what, count in tally["seen"].items())
        wrong = " | ".join(str(len(tally[kind])) for kind in ("lost", "silent", "tracebacks"))
        lines.append(f"| {tally['fault']} | {tally['cases']} | {seen} | {wrong} |")
    return lines


def files(document: dict[str, Any]) -> list[str]:
    """Return the table of what the checksums cost."""
    lines = ["| | without checksum, ms | with it, ms |", "|---|---|---|"]
    for row in document["rows"]:
        lines.append(f"| {row['what']} | {row['without_ms']:.1f} | {row['with_checksum_ms']:.1f} |")
    return lines


TABLES = {"faults": faults, "files": files}


def main() -> None:
    for name, table in TABLES.items():
        document = json.loads((RESULTS / f"{name}.json").read_text())
        print("\n".join(table(document)), end="\n\n")


if __name__ == "__main__":
    main()
