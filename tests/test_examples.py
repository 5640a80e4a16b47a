"""Each example runs as it stands in `examples/`, and trains a network that withstands an attack."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")  # it brings the images
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_a_robust_network(path: Path) -> None:
    done = subprocess.run([sys.executable, path, "--epochs", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clean, pgd = map(float, re.findall(r"accuracy ([\d.]+) %", done.stdout))
    assert clean > 85  # 10 % is chance
    assert pgd > 45  # an undefended network falls below 10 %
