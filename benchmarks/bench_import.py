"""Time `import rmcla_fast` and the commands that only print, each over `import torch` alone.

    python benchmarks/bench_import.py [--rounds 10] [--json benchmarks/results/import.json]

Each import is timed as a whole process, from its start to its end, since that is what a user waits for. The time of the
processor is printed, too, which other work on the machine changes less. The rivals run in turn, so that a change of the
load meets all of them. The first round fills the caches and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import ROOT, describe_machine
from rich.console import Console
from rich.table import Table

BASE = "import torch"
RIVALS = {
    BASE: ("-c", "import torch"),
    "import torch, rmcla_fast": ("-c", "import torch, rmcla_fast"),
    "rmcla --help": ("-m", "rmcla_fast.cli", "--help"),
    "rmcla info": ("-m", "rmcla_fast.cli", "info"),
}


def seconds_of(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Return how long a Python process with these arguments takes, and how long it keeps a processor busy."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main(rounds: int, path: Path | None) -> None:
    about = describe_machine(torch.device("cpu"))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in RIVALS}
    for number in range(rounds + 1):
        for name, arguments in RIVALS.items():
            found = seconds_of(arguments)
            if number:
                seconds[name].append(found)
    medians = {
        name: [1000 * statistics.median(kind) for kind in zip(*pairs, strict=True)] for name, pairs in seconds.items()
    }
    about |= {"load average at the end": os.getloadavg()}
    load = f"{about['load average'][0]:.1f} to {about['load average at the end'][0]:.1f}"
    table = Table(title=f"median of {rounds} processes, {about['machine']}, load {load}")
    for column in ("process", "ms", "over torch", "processor ms", "over torch"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, of_name in medians.items():
        pairs = zip(of_name, medians[BASE], strict=True)
        cells = [(f"{median:.0f}", "" if name == BASE else f"{median - base:.0f}") for median, base in pairs]
        table.add_row(name, *cells[0], *cells[1])
    Console().print(table)
    if path:
        document = {"context": about, "median ms, wall and processor": medians, "seconds, wall and processor": seconds}
        path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    main(options.rounds, options.json)
