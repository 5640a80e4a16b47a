"""A run killed with SIGKILL at random instants ends with the bits of one that is not (50 kills: the benchmark)."""

from __future__ import annotations

import json

import pytest
from run_cases import ROOT, python


@pytest.mark.slow
def test_killed_at_random_instants_the_bits_are_the_same() -> None:
    process = python(ROOT / "benchmarks" / "kill_and_resume.py", "--kills", "3", "--seed", "1")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    result = json.loads(printed)
    assert result["kills"] == 3
    assert result["identical"] == result["finished_runs"] >= 1
