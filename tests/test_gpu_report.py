"""What docs/h100.md says is what the committed command prints from the committed raw files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_report  # noqa: E402

RAW = ROOT / "benchmarks/results/nvidia-h100-80gb-hbm3-2026-11-26"
PAGE = (ROOT / "docs/h100.md").read_text()


@pytest.mark.parametrize("title", gpu_report.tables(RAW))
def test_the_page_has_the_table(title: str) -> None:
    assert gpu_report.tables(RAW)[title] in PAGE


@pytest.mark.parametrize("title", ["One update of preact-resnet18, batch 128", "Operators", "Training"])
def test_the_readme_has_the_table(title: str) -> None:
    assert gpu_report.tables(RAW)[title] in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["compile_bf16", "eager_fp32", "compile_fp32"])
def test_the_readme_has_the_table_of_a_step_on_a_cpu(name: str) -> None:
    (table,) = gpu_report.tables(ROOT / f"benchmarks/results/train_step_cpu_{name}_preact-resnet18.json").values()
    assert table in (ROOT / "README.md").read_text()


def test_the_readmes_operators_on_a_cpu_are_rows_of_the_table() -> None:
    raw = ROOT / "benchmarks/results/operators-intel-r-xeon-r-processor-2-threads.json"
    (table,) = gpu_report.tables(raw).values()
    on_a_cpu = (ROOT / "README.md").read_text().split("### On a CPU")[1]
    shown = [line for line in on_a_cpu.splitlines() if line.startswith("| `")]
    assert len(shown) > 15
    assert set(shown) <= set(table.splitlines())


def test_an_archive_of_some_steps_is_enough(tmp_path: Path) -> None:
    assert gpu_report.tables(tmp_path) == {}
    (tmp_path / "step-wrn.json").write_text((RAW / "step-wrn.json").read_text())
    assert list(gpu_report.tables(tmp_path)) == [
        "One update of wrn-28-10, batch 128",
        "What an update of wrn-28-10, batch 128 is made of",
    ]


def test_a_variant_in_several_processes_counts_by_its_median(tmp_path: Path) -> None:
    report = json.loads((RAW / "step-default.json").read_text())
    for name, seconds in (
        ("default", 4e-3),
        ("combo-kernels", 3.9e-3),
        ("combo-kernels-2", 3.1e-3),
        ("combo-kernels-3", 3e-3),
    ):
        report["seconds"]["r-mc-la step"]["wall"] = [seconds]
        (tmp_path / f"step-{name}.json").write_text(json.dumps(report))
    assert "| as it is | 4.00 | 1.000 |" in gpu_report.variants(tmp_path)
    assert "| `combo_kernels` | 3.10 (of 3.00, 3.10, 3.90) | 0.775 |" in gpu_report.variants(tmp_path)


def test_a_training_of_one_epoch_has_no_seconds_of_a_later_one(tmp_path: Path) -> None:
    for name in ("n-fgsm-evaluation.json", "n-fgsm-metrics.jsonl"):
        lines = (RAW / name).read_text().splitlines(keepends=True)
        first = next((number for number, line in enumerate(lines) if '"kind": "epoch"' in line), len(lines))
        (tmp_path / name).write_text("".join(lines[: first + 1]))
    assert "| `n-fgsm` | 5F | 1 | " in gpu_report.training(tmp_path)
    assert " |  | 74.6 |" in gpu_report.training(tmp_path)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    gpu_report.picture(RAW, tmp_path / "h100.png")
    assert (tmp_path / "h100.png").stat().st_size > 10_000
