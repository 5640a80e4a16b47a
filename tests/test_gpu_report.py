"""The tables in README.md and docs/ are what the committed command prints from the committed raw files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_report  # noqa: E402
import operator_tables  # noqa: E402

RESULTS = ROOT / "benchmarks/results"
RUNS = [  # on a GPU, from the first to the last
    RESULTS / "nvidia-h100-80gb-hbm3-2026-11-26",
    RESULTS / "nvidia-h100-80gb-hbm3-2026-11-26-652542a",
    RESULTS / "nvidia-h100-80gb-hbm3-2026-11-26-2ffa8f3",
]
RAW = RUNS[0]  # it has a file of every kind
STEPS_ON_A_CPU = RESULTS / "train_step_cpu_compile_bf16_preact-resnet18.json"
STEP = "One update of preact-resnet18, batch 128"


def page(path: str) -> str:
    return (ROOT / path).read_text()


def last_tables() -> dict[str, str]:
    """Each table of the last run that measured it."""
    return {title: table for run in RUNS for title, table in gpu_report.tables(run).items()}


@pytest.mark.parametrize("title", [title for title in last_tables() if title != "Operators"])
def test_the_page_about_the_h100_has_the_table_of_the_last_run_that_measured_it(title: str) -> None:
    assert last_tables()[title] in page("docs/h100.md")


def test_the_page_about_the_h100_has_each_operator_of_the_last_run_that_measured_it() -> None:
    rows = {}
    for run in RUNS:
        for row in gpu_report.tables(run)["Operators"].splitlines()[2:]:
            operator, size, *_ = row.split(" | ")
            rows[operator, size] = row
    gone = [row for row in rows.values() if "`augment_start`" in row]  # augment has replaced it
    assert len(gone) == 2
    assert set(rows.values()) - set(gone) <= set(page("docs/h100.md").splitlines())


def test_the_page_about_the_h100_has_the_options_of_every_run() -> None:
    for run in RUNS:
        assert gpu_report.tables(run).get("Options of Inductor and cuDNN", "") in page("docs/h100.md")


def test_the_page_of_results_has_the_table_of_the_trainings_on_the_h100() -> None:
    assert last_tables()["Training"] in page("docs/results.md")


def test_the_page_of_results_has_the_table_of_a_step_on_a_cpu() -> None:
    (table,) = gpu_report.tables(STEPS_ON_A_CPU).values()
    assert table in page("docs/results.md")


def test_the_page_of_results_has_the_table_of_the_operators_on_a_cpu() -> None:
    (table,) = gpu_report.tables(RESULTS / "operators-intel-xeon-2-threads.json").values()
    assert table in page("docs/results.md")


def test_the_page_about_the_operators_has_their_times_on_both_machines() -> None:
    tables = operator_tables.tables(RUNS, RESULTS / "operators-intel-xeon-2-threads.json")
    assert len(tables) == 5
    for operator, table in tables.items():
        section = page("docs/operators.md").partition(f"\n## {operator}\n")[2].partition("\n## ")[0]
        assert table in section


def test_the_readme_has_the_steps_of_the_last_run_on_a_gpu_beside_those_on_a_cpu() -> None:
    (on_a_cpu,) = gpu_report.tables(STEPS_ON_A_CPU).values()
    gpu, cpu = (
        {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in table.splitlines()}
        for table in (last_tables()[STEP], on_a_cpu)
    )
    ours = [f"{recipe} step" for recipe in ("standard", "r-mc-la", "r-mc-la+")]
    for name in (*ours, "lean step compiled", "public step compiled", "public step"):
        cells = [name, gpu[name][1], *gpu[name][-2:], *cpu[name][1:]]
        assert f"| {' | '.join(cells)} |" in page("README.md")


def test_tables_are_made_from_the_files_that_are_there(tmp_path: Path) -> None:
    assert gpu_report.tables(tmp_path) == {}
    (tmp_path / "step-wrn.json").write_text((RAW / "step-wrn.json").read_text())
    assert list(gpu_report.tables(tmp_path)) == [
        "One update of wrn-28-10, batch 128",
        "What an update of wrn-28-10, batch 128 is made of",
    ]


def test_the_median_of_several_processes_counts(tmp_path: Path) -> None:
    report = json.loads((RAW / "step-default.json").read_text())
    for name, seconds in (
        ("default", 4e-3),
        ("combo-kernels", 3.9e-3),
        ("combo-kernels-2", 3.1e-3),
        ("combo-kernels-3", 3e-3),
    ):
        report["seconds"]["r-mc-la step"]["wall"] = [seconds]
        (tmp_path / f"step-{name}.json").write_text(json.dumps(report))
    assert "| as it is | 4.00 | 1.000 |" in gpu_report.options_table(tmp_path)
    assert "| `combo_kernels` | 3.10 (of 3.00, 3.10, 3.90) | 0.775 |" in gpu_report.options_table(tmp_path)


def test_seconds_per_epoch_are_empty_after_only_one_epoch(tmp_path: Path) -> None:
    (tmp_path / "n-fgsm-config.json").write_text((RAW / "n-fgsm-config.json").read_text())
    for name in ("n-fgsm-evaluation.json", "n-fgsm-metrics.jsonl"):
        lines = (RAW / name).read_text().splitlines(keepends=True)
        first = next((number for number, line in enumerate(lines) if '"kind": "epoch"' in line), len(lines))
        (tmp_path / name).write_text("".join(lines[: first + 1]))
    assert "| `n-fgsm` | 5F | 1 | " in gpu_report.training_table(tmp_path)
    assert " |  | 74.6 |" in gpu_report.training_table(tmp_path)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    gpu_report.draw_picture(RAW, tmp_path / "h100.png")
    assert (tmp_path / "h100.png").stat().st_size > 10_000
