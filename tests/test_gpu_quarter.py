"""What the script for a GPU names is there: it runs once in a while, and a minute lost then is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/gpu_quarter.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, with the Python that runs the tests as python3."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    variables = {**os.environ, "PATH": path, **environment}
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=variables)


def test_every_file_that_it_names_is_there() -> None:
    text = SCRIPT.read_text()
    named = set(re.findall(r"(?:tests|benchmarks)/\w+\.(?:py|sh)", text))
    named |= {f"benchmarks/bench_{name}.py" for name in re.search(r"bench_\{([\w,]+)\}", text)[1].split(",")}  # type: ignore[index]
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.slow
def test_its_check_passes() -> None:
    finished = run("check")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    counts = [int(count) for count in re.findall(r": (\d+) tests", finished.stdout)]
    assert sum(counts) > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "prepare, check, facts, train, sanitize, operators or step"),
        (("nothing",), "no such stage: nothing"),
        (("prepare", "/nowhere.tar.xz"), "/nowhere.tar.xz is no archive, or cut short"),
    ],
)
def test_bad_input_is_a_sentence(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    finished = run(*arguments, GPU_FOLDER=str(tmp_path / "gpu"))
    assert finished.returncode != 0
    assert said in finished.stdout + finished.stderr


def test_without_a_gpu_it_says_so_and_stops(tmp_path: Path) -> None:
    finished = run("facts", OUT=str(tmp_path / "out"), WORK=str(tmp_path / "work"), CUDA_VISIBLE_DEVICES="")
    assert finished.returncode != 0
    assert "python3's torch sees no GPU" in finished.stdout
