"""The tables of docs/evaluation.md are what the committed command prints from the committed results."""

from __future__ import annotations

import json
import sys

import pytest
from run_cases import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_autoattack

REPORTS = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/results").glob("autoattack-*.json"))]
CASES = {f"{name}, {report['threads']} threads": case for report in REPORTS for name, case in report["cases"].items()}


@pytest.mark.parametrize("table", bench_autoattack.TABLES)
def test_the_page_has_the_tables_of_the_results(table: str) -> None:
    assert REPORTS
    page = (ROOT / "docs" / "evaluation.md").read_text()
    missing = [line for line in bench_autoattack.TABLES[table](REPORTS) if line not in page]
    assert not missing


@pytest.mark.parametrize("name", CASES)
def test_no_model_looks_more_robust_than_under_pyautoattack(name: str) -> None:
    """AutoAttack may leave one image more, and APGD half a percent of the images."""
    mine, theirs = CASES[name]["rmcla_fast"]["left"], CASES[name]["pyautoattack"]["left"]
    images = len(CASES[name]["rmcla_fast"]["right"])
    assert mine["square"] <= theirs.get("square", 0) + 1
    assert mine["apgd-t"] <= theirs.get("square", 0) + max(1, images / 200)
