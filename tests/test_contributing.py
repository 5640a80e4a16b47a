"""The two walks through the code in CONTRIBUTING.md name files and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rmcla_fast"
SOURCE = "\n".join(path.read_text() for path in (*PACKAGE.rglob("*.py"), *ROOT.glob("csrc/**/*.*")))
SECTIONS = (ROOT / "CONTRIBUTING.md").read_text().split("\n## ")


@pytest.mark.parametrize("title", ["One batch of images, from", "`epsilon`, from"])
def test_a_walk_names_what_exists(title: str) -> None:
    (section,) = [section for section in SECTIONS if section.startswith(title)]
    names = [name for name in set(re.findall(r"`([^`]+)`", section)) if not name.startswith(("rmcla ", "RUN/", "--"))]
    assert len(names) > 15
    for name in names:
        if name.endswith((".py", ".cu", ".cpp")):
            assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
        else:
            for part in name.partition("(")[0].split("."):
                assert re.search(rf"\b{part}\b", SOURCE), name
