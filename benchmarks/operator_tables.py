"""Print the tables of docs/operators.md: the times of each operator on the H100 and on a CPU, one beside the other.

    python benchmarks/operator_tables.py --gpu FOLDER FOLDER ... --cpu FILE

Each row has the last of the folders that measured it. tests/test_gpu_report.py checks that the page has what this
prints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import gpu_report

HEAD = ["size", "H100, us", "plain", "plain, compiled", "CPU, us", "plain", "plain, compiled"]


def times(paths: list[Path]) -> dict[str, dict[str, list[str]]]:
    """Return our time and the ratios of plain code, eager and compiled, by operator and size."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        for title, table in gpu_report.tables(path).items():
            for row in table.splitlines()[2:] if title.lower().startswith("operators") else []:
                operator, size, ours, plain, compiled, *_ = row.removeprefix("| ").split(" | ")
                found.setdefault(operator.strip("`"), {})[size] = [ours, plain, compiled]
    return found


def tables(gpu: list[Path], cpu: Path) -> dict[str, str]:
    """Return the table of each operator that was timed on the CPU, by its name."""
    on_gpu, on_cpu = times(gpu), times([cpu])
    made = {}
    for operator, rows in on_cpu.items():
        measured = on_gpu.get(operator, {})
        sizes = [*rows, *(size for size in measured if size not in rows)]
        missing = [""] * 3
        cells = [[size, *measured.get(size, missing), *rows.get(size, missing)] for size in sizes]
        made[operator] = gpu_report.markdown_table(HEAD, cells)
    return made


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", type=Path, nargs="+", required=True)
    parser.add_argument("--cpu", type=Path, required=True)
    arguments = parser.parse_args()
    for operator, table in tables(arguments.gpu, arguments.cpu).items():
        print(f"{operator}\n\n{table}\n")


if __name__ == "__main__":
    main()
