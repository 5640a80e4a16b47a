"""The tables of docs/robustness.md are what the committed command prints from the committed results."""

from __future__ import annotations

import json
import sys

import pytest
from run_cases import ROOT

sys.path.insert(0, str(ROOT / "tests" / "stress"))
import report


@pytest.mark.parametrize("name", report.TABLES)
def test_the_page_has_the_table_of_the_results(name: str) -> None:
    document = json.loads((report.RESULTS / f"{name}.json").read_text())
    assert "\n".join(report.TABLES[name](document)) in (ROOT / "docs" / "robustness.md").read_text()


def test_nothing_was_lost_wrong_or_reported() -> None:
    documents = {name: json.loads((report.RESULTS / f"{name}.json").read_text()) for name in report.TABLES}
    for fault in documents["faults"]["faults"]:
        assert not fault["lost"] + fault["silent"] + fault["tracebacks"], fault
    assert not documents["fuzz"]["failures"] + documents["sanitize"]["failures"]
    assert not any(documents["sanitize"]["reports"].values())
    assert documents["mutants"]["killed_percent"] >= 85
