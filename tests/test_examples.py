"""Each example runs as it stands in `examples/`, and trains a network that withstands an attack."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")  # it brings the images
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SPEEDRUN = (
    "--data digits --model small-cnn --epsilon 0.15 --batch-size 32 --lr 0.2 --smoothing 0 --decay 0.99 --images 60"
)
OPTIONS = {"speedrun": [*SPEEDRUN.split(), "--levels", "20", "99.9"]}  # for small computers


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_a_robust_network(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, path, "--epochs", "8", *OPTIONS.get(path.stem, [])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    clean, pgd, *autoattack = map(float, re.findall(r"accuracy ([\d.]+) %", done.stdout))
    if path.stem == "speedrun":
        assert re.search(r"\* 20 % after [\d.]+ s\n", done.stdout)
        assert "* 99.9 % was not reached" in done.stdout
        assert 0 < autoattack[0] <= pgd
    assert clean > 85  # 10 % is chance
    assert pgd > 45  # an undefended network falls below 10 %
