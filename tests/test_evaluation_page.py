"""docs/evaluation.md: its tables are what the committed command prints, and its lines compare two runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from documentation import python_blocks
from run_cases import ROOT

from rmcla_fast.evaluation.results import evaluate_run
from rmcla_fast.evaluation.run import evenly_spaced, open_run
from rmcla_fast.training import TrainConfig, train

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_autoattack

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
COMPARED = python_blocks("docs/evaluation.md")[0].replace("autoattack", "apgd-ce")


def reports(pattern: str) -> dict[str, dict[str, Any]]:
    """Return the results by the names of their files."""
    paths = sorted((ROOT / "benchmarks" / "results" / "autoattack").glob(pattern))
    return {path.stem: json.loads(path.read_text()) for path in paths}


TABLES = {
    bench_autoattack.verdicts_table: "verdicts-*.json",
    bench_autoattack.times_table: "times-*.json",
    bench_autoattack.estimate_table: "verdicts-cifar-*.json",
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_the_page_has_the_tables_of_the_results(table: Callable[..., list[str]]) -> None:
    lines = table(list(reports(TABLES[table]).values()))
    assert len(lines) > 3
    assert "\n".join(lines) in PAGE


VERDICTS = {
    f"{file}: {name}": case for file, report in reports("*.json").items() for name, case in report["cases"].items()
}


@pytest.mark.parametrize("name", VERDICTS)
def test_no_model_looks_more_robust_than_under_pyautoattack(name: str) -> None:
    """One image more may be right, since both attacks start at random."""
    mine, theirs = VERDICTS[name]["rmcla_fast"]["left"], VERDICTS[name]["pyautoattack"]["left"]
    assert mine["square"] <= theirs.get("square", 0) + 1


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
