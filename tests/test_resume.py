"""A run that is killed at random times and resumed ends with the same bits (the benchmark kills it 50 times)."""

from __future__ import annotations

import json

import pytest
from run_cases import ROOT, python


@pytest.mark.slow
def test_a_run_killed_at_random_times_ends_with_the_same_bits() -> None:
    process = python(ROOT / "benchmarks" / "kill_and_resume.py", "--kills", "3", "--seed", "1")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    result = json.loads(printed)
    assert result["kills"] == 3
    assert result["identical"] == result["finished_runs"] >= 1
