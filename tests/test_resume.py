"""A run killed with SIGKILL at random instants ends with the bits of one that is not (50 kills: the benchmark)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_killed_at_random_instants_the_bits_are_the_same() -> None:
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kill_and_resume.py", "--kills", "3", "--seed", "1"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["kills"] == 3
    assert result["identical"] == result["finished_runs"] >= 1
