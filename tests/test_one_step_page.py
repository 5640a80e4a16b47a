"""The tables of docs/one-step.md are those of the committed results."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from run_cases import ROOT

from rmcla_fast.training import TrainConfig
from rmcla_fast.training.resolve import resolve

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_report

RESULTS = ROOT / "benchmarks" / "results"
H200 = RESULTS / "nvidia-h200-2026-11-27"
PAGE = (ROOT / "docs" / "one-step.md").read_text()


@pytest.mark.parametrize("title", ["One update of resnet18, batch 128", "Training"])
def test_the_page_has_the_tables_of_the_run_on_a_gpu(title: str) -> None:
    assert gpu_report.tables(H200)[title] in PAGE


def accuracy(result: dict[str, Any]) -> str:
    return f"{result['accuracy']:.1f} ± {result['standard_error']:.1f}"


def test_the_page_has_every_candidate_of_the_run_on_a_gpu() -> None:
    for result in json.loads((H200 / "screen.json").read_text())["results"]:
        name = result["variant"].replace("squared", "squared 10")  # its name at that commit
        found = result["attacks"]["average"]
        cells = " | ".join(accuracy(found[attack]) for attack in ("clean", "ce20", "cw100"))
        assert f"| {name} | {result['passes']}F | 1 | {cells} |" in PAGE


def test_the_page_has_every_row_of_the_studies() -> None:
    studies = sorted(RESULTS.glob("one-step-study*.md"))
    assert studies
    for path in studies:
        rows = [line for line in path.read_text().splitlines() if line.startswith("| ")]
        assert len(rows) > 2
        for row in rows:
            assert row in PAGE, path.name


def test_the_page_has_the_statistics_of_the_average() -> None:
    runs = json.loads((RESULTS / "average-statistics.json").read_text())["runs"].values()
    kinds = ("averaged", "copied from the weights", "estimated on adversarial images", "estimated on clean images")
    for kind in kinds:
        cells = " | ".join(f"{run[kind]['clean']:.1f} / {run[kind]['ce20']:.1f}" for run in runs)
        assert f" | {cells} |" in PAGE, kind


def test_the_page_says_what_the_protocol_sets() -> None:
    config = resolve(TrainConfig(data="cifar10", protocol="fastat"))
    table = PAGE[PAGE.index("| option | value |") : PAGE.index("`rmcla reproduce fastat")]
    for name in ("epochs", "batch_size", "lr", "schedule", "momentum", "label_smoothing", "ema", "model", "clip_grad"):
        value = getattr(config, name)
        assert str(value) in table, name
        assert f"--{name.replace('_', '-')}" in table
    assert "5e-4" in table
    assert config.weight_decay == 5e-4
    assert f"{config.monitor_images:,}" in table
