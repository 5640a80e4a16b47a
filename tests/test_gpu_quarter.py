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
    ("arguments", "environment", "said"),
    [
        ((), {}, "the stage is missing; give one of facts, train,"),
        (("nothing",), {}, "there is no stage 'nothing'; give one of facts, train,"),
        (("facts",), {"BUDGET": "1.5"}, "BUDGET must be a whole number of seconds; got '1.5'"),
        (("prepare",), {}, "prepare takes the archive of the images"),
        (("prepare", "/nowhere.tar.xz"), {}, "/nowhere.tar.xz is no archive, or cut short"),
        (("train", "../.."), {"DEVICE": "cpu"}, "no recipe is called '../..'"),
        (("train", "n-fgsm"), {"DEVICE": "cpu"}, "there are no images: give DATA=FOLDER, or prepare IMAGES.tar.xz"),
        (("step", "lenet"), {"DEVICE": "cpu"}, "there is no network 'lenet'; give one of preact-512, wrn and resnet50"),
    ],
)
def test_bad_input_is_a_sentence_and_nothing_is_lost(
    arguments: tuple[str, ...], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    kept = tmp_path / "gpu/kept"
    kept.parent.mkdir()
    kept.write_text("mine")
    places = {"GPU_FOLDER": str(tmp_path / "gpu"), "WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    finished = run(*arguments, **places, **environment)
    assert finished.returncode != 0
    assert said in finished.stdout + finished.stderr
    assert kept.read_text() == "mine"


def test_without_a_gpu_it_says_so_and_stops(tmp_path: Path) -> None:
    finished = run("facts", OUT=str(tmp_path / "out"), WORK=str(tmp_path / "work"), CUDA_VISIBLE_DEVICES="")
    assert finished.returncode != 0
    assert "python3's torch sees no GPU" in finished.stdout
