"""Configure the operator benchmarks: options and the device, a table of ratios at the end, and the raw figures.

`pytest benchmarks` without -k or -m runs all cases and writes benchmarks/results/. A part of the cases would replace
the figures of the others there, so its figures are written only to `--rows FILE`. This command measures a GPU in one
minute, and tests/test_benchmarks.py checks that it selects cases of every operator:

    python -m pytest benchmarks/bench_{augment,random_start,perturb_step,joint_gradient,soft_cross_entropy}.py \\
      -m compact -q --benchmark-disable-gc --references-for 30 --rows FILE
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cases
import machine
import pytest
import torch
from rich.console import Console
from rich.table import Table

from rmcla_fast.files import replacing

RESULTS = Path(__file__).parent / "results"
COMPACT = re.compile(  # the cases that -m compact selects
    r"""bench_(perturb_step|random_start)\[
      | bench_joint_gradient\[(?!128x100\])
      | bench_soft_cross_entropy\[(128x10|4096x1000|64x21841)\]
      | bench_augment\[(224-contiguous|32-channels_last)\]""",
    re.VERBOSE,
)
collect_ignore = ["bench_fed_update.py", "bench_import.py", "bench_pgd.py", "bench_train_step.py"]  # programs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="write the figures to this JSON file after every finished case")
    parser.addoption(
        "--references-for",
        type=float,
        default=float("inf"),
        help="compile references, and autotune plain code on a GPU, only during this many seconds",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compact: the cases that measure a GPU in a minute")
    cases.references_until = time.monotonic() + config.getoption("--references-for")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if COMPACT.match(item.name):
            item.add_marker("compact")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


machine_at_start = functools.cache(machine.describe_machine)


@pytest.fixture(autouse=True)
def _write_figures(request: pytest.FixtureRequest, device: torch.device) -> Iterator[None]:
    about = machine_at_start(device)
    torch._dynamo.reset()  # each case compiles the same functions for its own shapes
    before = len(cases.rows)
    yield
    path = request.config.getoption("--rows")
    if path and len(cases.rows) > before:
        write_rows(path, about)


def write_rows(path: Path, about: dict[str, Any]) -> None:
    """Write all rows so far. A run that is killed leaves a complete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        rows = [asdict(row) for row in cases.rows]
        file.write((json.dumps({"context": about, "rows": rows}, indent=1) + "\n").encode())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not cases.rows:
        return
    about = machine_at_start(torch.device(cases.rows[0].device))
    about |= {"load average at the end": os.getloadavg(), "clocks at the end": machine.clocks()}
    terminalreporter.ensure_newline()
    console = Console(file=terminalreporter._tw._file, width=150)
    console.print(ratio_table(about))
    for row in cases.rows:
        for rival, why in row.missing.items():
            console.print(f"missing: {row.operator}, {row.case}, {rival}: {why}", markup=False, highlight=False)
    config = terminalreporter.config
    if config.getoption("--rows"):
        write_rows(config.getoption("--rows"), about)
    partial = config.option.keyword or config.option.markexpr
    if partial or any(not Path(argument).is_dir() for argument in config.args):
        return
    name = re.sub(r"[^a-z0-9]+", "-", about["machine"].lower()).strip("-")
    path = RESULTS / f"operators-{name}-{about['threads']}-threads.json"
    write_rows(path, about)
    console.print(f"raw figures: {path.relative_to(RESULTS.parent.parent)}")


def ratio_table(about: dict[str, Any]) -> Table:
    load = about["load average"][0]
    title = f"{about['machine']}, {about['threads']} threads, load average {load:.1f}, torch {about['torch']}"
    caption = "ours: quartiles in brackets; rivals: their time divided by ours; roof: our share of a copy's bandwidth"
    result = Table(title=title, caption=caption)
    ratios = ("eager", "compile", "plain", "plain, compiled")
    for column in ("operator", "case", "ours, us", *ratios, "others", "roof"):
        result.add_column(column, justify="left" if column in ("operator", "case", "others") else "right")
    for row in cases.rows:
        others = [
            f"{name} {row.ratio(name):.2f}x"
            for name in row.seconds
            if name not in (*ratios, "ours") and not name.endswith(" copy")
        ]
        lower, upper = row.spread["ours"]
        result.add_row(
            row.operator,
            row.case + (", cold L2" if row.cold else ""),
            f"{row.seconds['ours'] * 1e6:.1f} ({lower * 1e6:.1f} to {upper * 1e6:.1f})",
            *(f"{row.ratio(name):.2f}x" if name in row.seconds else "" for name in ratios),
            ", ".join(others),
            f"{row.roof / row.seconds['ours']:.0%}" if row.roof else "",
        )
    return result
