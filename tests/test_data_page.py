"""docs/data.md: its table is that of the results, its code runs, and it names every data set and suffix."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import ROOT

from rmcla_fast.data import DATASETS
from rmcla_fast.data.images import SUFFIXES

sys.path.insert(0, str(ROOT / "benchmarks"))
import extra_digits

PAGE = (ROOT / "docs" / "data.md").read_text()
MADE = (ROOT / "benchmarks" / "results" / "extra-digits.md").read_text()


def test_the_page_has_the_table_of_the_results() -> None:
    (table,) = re.findall(r"(?:^\|.*\n)+", MADE, re.MULTILINE)
    assert table in PAGE


def test_the_page_names_every_data_set_and_every_suffix() -> None:
    assert set(re.findall(r"^\| `([a-z][\w-]+)` \|", PAGE, re.MULTILINE)) == set(DATASETS)
    assert set(re.findall(r"(?<= )\.[a-z]+\b(?=[, ])", PAGE)) >= SUFFIXES


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    names = {"images": images, "labels": np.arange(7)}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert torch.equal(names["extra"].images, torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.mark.slow
def test_the_benchmark_of_extra_digits_runs(tmp_path: Path) -> None:
    short = ("--seeds", "1", "--fractions", "0", "0.7", "--epochs", "1", "--recipe", "standard")
    extra_digits.main((*short, "--out", str(tmp_path / "found")))
    assert "| none |" in (tmp_path / "found.md").read_text()
    assert extra_digits.write_others(tmp_path / "others.npz", seed=0) == 1437 - 200
