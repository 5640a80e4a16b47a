"""The device, and at the end the table of ratios; of a whole run also the raw figures with their machine.

A whole run is `pytest benchmarks`, without -k: a part would replace the record in benchmarks/results/.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def context() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return {
        "machine": machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "load average": os.getloadavg(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "commit": commit.stdout.strip(),
    }


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not cases.rows:
        return
    about = context()
    terminalreporter.ensure_newline()
    console = Console(file=terminalreporter._tw._file, width=130)
    console.print(table(about))
    config = terminalreporter.config
    if config.option.keyword or any(not Path(argument).is_dir() for argument in config.args):
        return
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", about["machine"].lower()).strip("-")
    path = RESULTS / f"operators-{name}-{about['threads']}-threads.json"
    path.write_text(json.dumps({"context": about, "rows": [row.as_dict() for row in cases.rows]}, indent=1) + "\n")
    console.print(f"raw figures: {path.relative_to(RESULTS.parent.parent)}")


def table(about: dict[str, Any]) -> Table:
    load = about["load average"][0]
    title = f"{about['machine']}, {about['threads']} threads, load average {load:.1f}, torch {about['torch']}"
    result = Table(title=title, caption="seconds of the rival over ours; roof: share of the best copy's bandwidth")
    for column in ("operator", "case", "ours, us", "eager", "compile", "others", "roof"):
        result.add_column(column, justify="left" if column in ("operator", "case", "others") else "right")
    for row in cases.rows:
        known = {"ours", "eager", "compile", "plain copy", "streaming copy"}
        others = [f"{name} {row.ratio(name):.1f}x" for name in row.seconds if name not in known]
        result.add_row(
            row.operator,
            row.case,
            f"{row.seconds['ours'] * 1e6:.1f}",
            *(f"{row.ratio(name):.1f}x" if name in row.seconds else "" for name in ("eager", "compile")),
            ", ".join(others),
            f"{row.roof / row.seconds['ours']:.0%}" if row.roof else "",
        )
    return result
