"""Two cells of the install matrix, and its list; `python tests/install/matrix.py` runs all of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).with_name("matrix.py")
NEEDED = ("pip", "setuptools", "ninja", "pybind11", "typer", "rich")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(MATRIX), *arguments], capture_output=True, text=True)


def test_a_cell_that_does_not_exist_is_an_error() -> None:
    names = run("--list").stdout.split()
    assert len(names) == len(set(names)) > 30
    done = run("--cells", "no-compiler,nothing")
    assert done.returncode == 2
    assert "there is no cell nothing; --list names all" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the matrix needs the folders of a virtual environment on Linux")
@pytest.mark.parametrize("cell", ["without-kernels", "cuda-forced-without-nvcc"])
def test_a_fast_cell_passes(cell: str) -> None:
    """Neither compiles anything, and pip finds all that the package needs in the environment of the tests."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the cells need {', '.join(missing)}")
    done = run("--cells", cell)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert f"{cell:<30} ok " in done.stdout
