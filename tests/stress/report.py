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


def fuzz(document: dict[str, Any]) -> list[str]:
    """Return the table of random arguments: the cases of each operator on each backend."""
    operators = sorted({name for counts in document["cases"].values() for name in counts})
    lines = [
        "| cases | " + " | ".join(f"`{name}`" for name in operators) + " | failed |",
        "|---" * (len(operators) + 2) + "|",
    ]
    for backend, counts in document["cases"].items():
        failed = sum(failure["backend"] == backend for failure in document["failures"])
        lines.append(
            f"| {backend} | " + " | ".join(f"{counts.get(name, 0):,}" for name in operators) + f" | {failed} |"
        )
    return lines


def sanitize(document: dict[str, Any]) -> list[str]:
    """Return the table of what ran under the sanitizers, and what they reported."""
    cases = ", ".join(f"{sum(counts.values()):,} on {name}" for name, counts in document["fuzzed"].items())
    lines = ["| under the sanitizers | |", "|---|---|", f"| tests passed | {document['tests passed']:,} |"]
    lines += [f"| random arguments | {cases} |", f"| of them failed | {len(document['failures'])} |"]
    return lines + [f"| reports of {name} | {count} |" for name, count in document["reports"].items()]


def mutants(document: dict[str, Any]) -> list[str]:
    """Return the table of the mutants of each file."""
    lines = ["| file | mutants | tried | killed | survived | equivalent |", "|---|---|---|---|---|---|"]
    total = dict.fromkeys(("mutants", "tested", "killed", "survived", "equivalent"), 0)
    for name, counts in document["files"].items():
        shown = {
            **counts,
            "killed": counts["killed"] + counts["timed out"],
            "tested": counts["tested"] - counts["broken"],
        }
        total = {key: total[key] + shown[key] for key in total}
        lines.append(f"| `{name}` | " + " | ".join(f"{shown[key]:,}" for key in total) + " |")
    return [*lines, "| all | " + " | ".join(f"{count:,}" for count in total.values()) + " |"]


TABLES = {"faults": faults, "files": files, "fuzz": fuzz, "sanitize": sanitize, "mutants": mutants}


def main() -> None:
    for name, table in TABLES.items():
        document = json.loads((RESULTS / f"{name}.json").read_text())
        print("\n".join(table(document)), end="\n\n")


if __name__ == "__main__":
    main()
