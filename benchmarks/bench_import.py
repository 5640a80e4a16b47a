"""Time `import rmcla_fast` and the commands that only print, each over `import torch` alone.

    python benchmarks/bench_import.py [--rounds 10] [--json benchmarks/results/import.json]

Each import is timed as a whole process, from its start to its end, since that is what a user waits for. The rivals run
in turn, so that a change of the machine's load meets all of them. The first round fills the caches and does not count.
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
    "import torch; import rmcla_fast": ("-c", "import torch; import rmcla_fast"),
    "rmcla --help": ("-m", "rmcla_fast.cli", "--help"),
    "rmcla info": ("-m", "rmcla_fast.cli", "info"),
}


def seconds_of(arguments: tuple[str, ...]) -> float:
    """Return how long a Python process with these arguments takes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def main(rounds: int, path: Path | None) -> None:
    about = describe_machine(torch.device("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in RIVALS}
    for number in range(rounds + 1):
        for name, arguments in RIVALS.items():
            found = seconds_of(arguments)
            if number:
                seconds[name].append(found)
    table = Table(title=f"median of {rounds} processes, {about['machine']}, load {about['load average'][0]:.1f}")
    for column in ("process", "ms", "over import torch, ms"):
        table.add_column(column, justify="left" if column == "process" else "right")
    medians = {name: 1000 * statistics.median(samples) for name, samples in seconds.items()}
    for name, median in medians.items():
        table.add_row(name, f"{median:.0f}", "" if name == BASE else f"{median - medians[BASE]:.0f}")
    Console().print(table)
    if path:
        about |= {"load average at the end": os.getloadavg()}
        path.write_text(json.dumps({"context": about, "median ms": medians, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    main(options.rounds, options.json)
