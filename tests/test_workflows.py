"""The workflows call what exists: targets of the Makefile, scripts, tests, and the oldest torch and Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rmcla_fast.ops import extension

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    """Return the jobs of a workflow by name."""
    return yaml.safe_load(path.read_text())["jobs"]


def commands(path: Path) -> list[str]:
    """Return the commands of all jobs of a workflow."""
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_exists(path: Path) -> None:
    called = commands(path)
    assert called
    for command in called:
        program, *words = command.split()
        assert program in ("make", "python", "rmcla"), command
        assert program != "make" or set(words) <= TARGETS, command
        assert not [word for word in words if word.endswith(".py") and not (ROOT / word).is_file()], command


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_ends_and_runs_on_a_named_release(path: Path) -> None:
    """A runner called `latest` changes by itself, and with it the systems that the wheels run on."""
    for name, job in jobs(path).items():
        assert 0 < job["timeout-minutes"] <= 120, name
        assert "latest" not in str(job["runs-on"]) + str(job.get("strategy", "")), name


def test_the_oldest_and_the_newest_python_are_tested() -> None:
    found = [
        job["strategy"]["matrix"]["python"] for path in WORKFLOWS for job in jobs(path).values() if "strategy" in job
    ]
    assert found == [["3.10", "3.13"]] * 2
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text()
    assert f"torch=={extension.FLOOR}.0" in "".join(commands(WORKFLOWS[0]))
