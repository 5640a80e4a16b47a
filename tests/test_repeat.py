"""A run started anew from a recorded config.json ends with the same bits; so do the evaluations of one model."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import ROOT, python, read_checkpoint

from rmcla_fast.options import flag
from rmcla_fast.training import TrainConfig, checkpoint
from rmcla_fast.training.record import read_config

sys.path.insert(0, str(ROOT / "tests" / "stress"))
from differences import differences

NETWORK = """
from torch import nn

def dropping(num_classes):
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout())
    return nn.Sequential(features, nn.Linear(144, num_classes))
"""
FROM_RECORD = """
import dataclasses, json, sys
from rmcla_fast.training import TrainConfig, train

recorded = json.load(open(sys.argv[1]))
options = {field.name: recorded[field.name] for field in dataclasses.fields(TrainConfig)}
train(TrainConfig(**options | {"out": sys.argv[2], "resume": False}))
"""
SHORT = ("--data", "digits", "--images-per-class", 20, "--epochs", 2, "--monitor-every", 1, "--device", "cpu")
CASES: dict[str, tuple[object, ...]] = {
    "augmented": ("--augment", "--recipe", "r-mc-la+", "--ema", 0.9, "--seed", 3, "--threads", 2, "--deterministic"),
    "random targets in pieces": ("--recipe", "r-rand", "--accumulate", 4, "--model", "mine:dropping", "--clip-grad", 0),
    "compiled": ("--recipe", "n-fgsm-la", "--precision", "bf16", "--epsilon-warmup", 1, "--capture", "compile"),
}


def finished(process: Any) -> str:
    printed, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return printed


def options_of(recorded: dict[str, Any]) -> list[object]:
    """Return the options of `rmcla train` for the fields of a config.json."""
    options: list[object] = []
    for field in dataclasses.fields(TrainConfig):
        value = recorded[field.name]
        if field.name in ("out", "resume") or value is None:
            continue
        if not isinstance(value, bool):
            options += [flag(field.name), value]
        elif value or field.name == "augment":  # the other switches are off by default and have no name for that
            options.append(flag(field.name if value else f"no_{field.name}"))
    return options


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_from_a_recorded_config_ends_with_the_same_bits(case: str, tmp_path: Path) -> None:
    """It runs three times, each in a process of its own: as it was asked for, from the record, and from its options."""
    (tmp_path / "mine.py").write_text(NETWORK)
    (tmp_path / "from_record.py").write_text(FROM_RECORD)
    train = ("-m", "rmcla_fast.cli", "train", "-q")
    finished(python(*train, *SHORT, *CASES[case], "--out", "first", cwd=tmp_path))
    recorded = read_config(tmp_path / "first" / "config.json").as_json()
    others = [
        python("from_record.py", "first/config.json", "second", cwd=tmp_path),
        python(*train, *options_of(recorded), "--out", "third", cwd=tmp_path),
    ]
    for other in others:
        finished(other)
    names = [checkpoint.LAST, *([checkpoint.BEST] if recorded["monitor_images"] else [])]
    for name in ("second", "third"):
        for path in names:
            assert not differences(*(read_checkpoint(tmp_path / run / path) for run in (name, "first")))
        assert read_config(tmp_path / name / "config.json").as_json() == recorded | {"out": name}


def test_config_json_records_what_else_decides_the_bits(tmp_path: Path) -> None:
    finished(python("-m", "rmcla_fast.cli", "train", "-q", *SHORT, "--out", tmp_path / "run"))
    recorded = read_config(tmp_path / "run" / "config.json").as_json()
    assert recorded["threads"] == 1
    assert recorded["deterministic"] is False
    assert recorded["torch"]
    facts = recorded["computed_by"]
    assert (facts["device"], facts["capture"], facts["processes"]) == ("cpu", "eager", 1)
    assert facts["backend"] in ("cpu", "reference")
    assert torch.backends.cpu.get_cpu_capability() in facts["cpu"]


@pytest.mark.slow
def test_evaluations_of_one_model_give_the_same_bits(tmp_path: Path) -> None:
    """Every kind of attack runs twice, in separate processes; only the measured times differ."""
    pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")
    finished(python("-m", "rmcla_fast.cli", "train", "-q", *SHORT, "--out", tmp_path / "run"))
    attacks = "clean,fgsm,ce20,cw100,mi,cw-l2-b,deepfool-l2,autoattack"
    found = []
    for name in ("a", "b"):
        command = ("evaluate", tmp_path / "run", "--images", 20, "--attacks", attacks, "--fresh", "--restarts", 2)
        finished(python("-m", "rmcla_fast.cli", *command, "--json", tmp_path / name, "--device", "cpu"))
        document = json.loads((tmp_path / name).read_text())
        results = document["attacks"].values()
        for measured in [*results, *(part for result in results for part in result.get("parts", []))]:
            measured["seconds"] = 0
        found.append(list(results))
    assert len(found[0]) == 8
    assert found[0] == found[1]
