"""docs/evaluation.md: its tables are what the committed command prints, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_cases import examples, small_net
from run_cases import ROOT

from rmcla_fast.evaluation.results import evaluate_run
from rmcla_fast.evaluation.run import evenly_spaced, open_run
from rmcla_fast.training import TrainConfig, train

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_autoattack

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
COMPARED, FROM_PYTHON = re.findall(r"```python\n(.*?)```", PAGE.replace("autoattack", "apgd-ce"), re.DOTALL)
REPORTS = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/results").glob("autoattack-*.json"))]
CASES = {f"{name}, {report['threads']} threads": case for report in REPORTS for name, case in report["cases"].items()}


@pytest.mark.parametrize("table", bench_autoattack.TABLES)
def test_the_page_has_the_tables_of_the_results(table: str) -> None:
    assert REPORTS
    missing = [line for line in bench_autoattack.TABLES[table](REPORTS) if line not in PAGE]
    assert not missing


@pytest.mark.parametrize("name", CASES)
def test_no_model_looks_more_robust_than_under_pyautoattack(name: str) -> None:
    """AutoAttack may leave one image more, and APGD half a percent of the images."""
    mine, theirs = CASES[name]["rmcla_fast"]["left"], CASES[name]["pyautoattack"]["left"]
    images = len(CASES[name]["rmcla_fast"]["right"])
    assert mine["square"] <= theirs.get("square", 0) + 1
    assert mine["apgd-t"] <= theirs.get("square", 0) + max(1, images / 200)


def test_its_lines_compare_two_runs(tmp_path: Path) -> None:
    config = TrainConfig(data="digits", recipe="r-mc-la", images_per_class=20, epochs=2, out=str(tmp_path / "run"))
    folder = train(config, quiet=True)
    other = shutil.copytree(folder, tmp_path / "other")

    def evaluated(path: Path, epsilon: float) -> torch.Tensor:
        run = open_run(path, images=45, device="cpu")
        right = evaluate_run(run, "clean,apgd-ce", epsilon=epsilon)["apgd-ce"].right
        assert right is not None
        return right

    both = evaluated(folder, 0.1) & evaluated(other, 0.1)
    code = COMPARED.replace("RUN2", str(other)).replace('"RUN', f'"{folder}')
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(torch.from_numpy(names["both"]), both)
    assert len(names["lost"]) == 0
    evaluated(other, 0.3)
    with pytest.raises(AssertionError):
        exec(code, names)


@pytest.mark.parametrize(("count", "total"), [(60, 360), (7, 10), (1000, 10000), (45, 89)])
def test_the_rows_of_the_file_are_the_images_that_it_names(count: int, total: int) -> None:
    assert evenly_spaced(total, count).tolist() == [k * total // count for k in range(count)]


def test_its_lines_print_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = examples(8)
    exec(FROM_PYTHON, {"model": small_net(), "images": images, "labels": labels})
    printed = capsys.readouterr().out
    assert "apgd-t fooled" in printed
    assert "wrong: [" in printed
