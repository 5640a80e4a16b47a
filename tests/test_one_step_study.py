"""`benchmarks/one_step_study.py`: a study is resumed and grows, and nothing that was measured is lost."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from run_cases import ROOT, python

sys.path.insert(0, str(ROOT / "benchmarks"))
import one_step_report
import one_step_study


def study(folder: Path, *options: object) -> tuple[int, str, str]:
    small = ("--data", "digits", "--data-title", "digits", "--model", "small-cnn", "--epsilon", "0.1", "--images", 40)
    brief = ("--images-per-class", 20, "--epochs", 1, "--monitor-images", 20, "--workers", 1)
    places = ("--runs", folder / "runs", "--out", folder / "results" / "study")
    process = python(ROOT / "benchmarks" / "one_step_study.py", *small, *brief, *places, *options)
    said, complained = process.communicate(timeout=300)
    return process.returncode, said, complained


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results" / "study.json").read_text())["results"]


def test_a_study_grows_and_repeats_nothing(tmp_path: Path) -> None:
    asked = ("--attacks", "clean,ce20", "--variants", "n-fgsm", "r-mc-la")
    code, said, complained = study(tmp_path, *asked)
    assert code == 0, complained
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| variant", "| n-fgsm", "| r-mc-la"]
    assert "Standard deviation between seeds" not in said
    assert (tmp_path / "results" / "study.png").stat().st_size > 5000
    first = results(tmp_path)
    assert [set(result["attacks"]["weights"]) for result in first] == [{"clean", "ce20"}] * 2
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/checkpoint.pt")}
    assert len(trained) == 2

    assert study(tmp_path, *asked)[0] == 0
    assert results(tmp_path) == first

    # A second seed comes to the first, which is not repeated even without its run.
    for path in (tmp_path / "runs").glob("r-mc-la-*/*"):
        path.unlink()
    code, said, complained = study(tmp_path, *asked[:-2], "r-mc-la", "--seeds", 2)
    assert code == 0, complained
    both = results(tmp_path)
    assert [(result["variant"], result["seed"]) for result in both] == [("n-fgsm", 0), ("r-mc-la", 0), ("r-mc-la", 1)]
    assert both[:2] == first
    seeds = [result["attacks"]["average"]["ce20"]["accuracy"] for result in both[1:]]
    deviation = abs(seeds[0] - seeds[1]) / 2**0.5
    assert f"CE20, average {deviation:.1f};" in said[said.index("Standard deviation between seeds") :]
    assert all(path.stat().st_mtime_ns == when for path, when in trained.items() if path.exists())

    # Another attack on the average alone keeps what is known about the weights.
    (tmp_path / "results" / "study.json").unlink()
    code, said, complained = study(
        tmp_path, "--attacks", "clean,ce20,ce10", "--kinds", "average", "--variants", "n-fgsm"
    )
    assert code == 0, complained
    (again, *_) = results(tmp_path)
    assert again["attacks"]["weights"] == first[0]["attacks"]["weights"]
    assert again["attacks"]["average"]["ce20"] == first[0]["attacks"]["average"]["ce20"]
    assert set(again["attacks"]["average"]) == {"clean", "ce20", "ce10"}

    code, _, complained = study(tmp_path, *asked, "--lr", 0.2)
    assert code == 1
    assert complained.strip().endswith("study.json was measured with other settings; give another --out")


def test_a_variant_that_fails_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    code, said, complained = study(tmp_path, "--attacks", "clean", "--variants", "silu", "n-fgsm")  # no small-cnn-silu
    assert code == 1
    assert "\n| n-fgsm | 5F | 1 |" in said
    assert "1 runs failed: [('silu', 0)]; their logs are beside their folders in " in complained


def test_the_candidates_of_a_gpu_are_variants() -> None:
    script = (ROOT / "benchmarks" / "gpu_quarter.sh").read_text()
    screen = script[script.index("\nscreen() {") :]
    named = screen[screen.index("--variants ") + len("--variants ") :].partition("\n  wait")[0].replace("\\", " ")
    names = [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|(\S+)', named)]
    assert len(names) > 2
    assert set(names) <= set(one_step_study.VARIANTS)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [({"a": [1.0]}, 0.0), ({"a": [1.0, 3.0]}, 2**0.5), ({"a": [1.0, 3.0], "b": [5, 5, 5]}, 0.816)],
)
def test_the_deviation_between_seeds_is_pooled(figures: dict[str, list[float]], expected: float) -> None:
    found = [
        {"variant": variant, "attacks": {"average": {"ce20": {"accuracy": accuracy}}}}
        for variant, accuracies in figures.items()
        for accuracy in accuracies
    ]
    assert one_step_report.seed_deviation(found, "average", "ce20") == pytest.approx(expected, abs=1e-3)
