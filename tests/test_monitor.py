"""Tests of the monitor (held-out accuracy, catastrophic overfitting) and of the progress display."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import read_checkpoint, small

from rmcla_fast import data, models
from rmcla_fast.attacks import pgd
from rmcla_fast.errors import RunFailed
from rmcla_fast.training import train
from rmcla_fast.training.metrics import read_metrics
from rmcla_fast.training.monitor import Accuracies, Measured, Monitor
from rmcla_fast.training.progress import Display


def test_catastrophic_overfitting_is_reported_and_can_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Monitor, "measure", lambda self, model: Accuracies(99.0, 95.0, 3.0))
    train(small(tmp_path / "a"), quiet=False)
    said = capsys.readouterr().err
    assert said.count("catastrophic overfitting begins at epoch 1") == 1
    assert [row["overfitting"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl") if "pgd" in row] == [True] * 2
    with pytest.raises(RunFailed, match="stopped at epoch 1, where catastrophic overfitting began"):
        train(small(tmp_path / "b", stop_on_overfitting=True))
    assert read_checkpoint(tmp_path / "b" / "checkpoint.pt")["epoch"] == 1
    train(small(tmp_path / "c", stop_on_overfitting=True, recipe="standard"))  # not adversarial training


def test_overfitting_is_a_large_gap_between_fgsm_and_pgd() -> None:
    assert Accuracies(99, 95, 10).overfitted
    assert not Accuracies(91, 70, 55).overfitted  # the paper's R-MC-LA on CIFAR-10
    assert not Accuracies(69, 31, 23).overfitted  # and on CIFAR-100
    assert not Accuracies(20, 5, 1).overfitted  # the first epochs


def test_the_accuracies_are_those_of_pgd() -> None:
    model = models.create("small-cnn", 10, 1)
    held_out = data.load("digits", images_per_class=30).train
    images, labels = held_out.images, held_out.labels
    seen = Monitor(held_out, 0.15, torch.device("cpu"), 5).measure(model)
    model.eval()
    expected = [images.float() / 255]
    expected.append(pgd(model, images, labels, epsilon=0.15, step_size=0.15, steps=1, random_start=False))
    batches = zip(images.split(256), labels.split(256), strict=True)  # every batch has the noise of the same seed
    settings = {"epsilon": 0.15, "step_size": 0.15 / 4, "steps": 10, "seed": 5}
    expected.append(torch.cat([pgd(model, *batch, **settings) for batch in batches]))
    right = [100 * (model(shown).argmax(1) == labels).double().mean().item() for shown in expected]
    assert dataclasses.astuple(seen) == pytest.approx(right, abs=0.4)  # one image of 300


def test_epsilon_0_leaves_the_clean_accuracy() -> None:
    held_out = data.load("digits", images_per_class=3).train
    seen = Monitor(held_out, 0.0, torch.device("cpu"), 0).measure(models.create("small-cnn", 10, 1))
    assert seen.clean == seen.fgsm == seen.pgd


def test_the_monitor_leaves_the_model_and_the_random_state_as_they_were() -> None:
    model = models.create("small-cnn", 10, 1)
    model.train()
    model.features.eval()  # type: ignore[operator,union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    monitor = Monitor(data.load("digits", images_per_class=30).train, 0.15, torch.device("cpu"), 0)
    seen = monitor.measure(model)
    assert seen == monitor.measure(model)
    assert seen.pgd <= seen.clean + 5
    assert model.training
    assert not model.features.training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_display_fits_80_columns_and_shows_the_loss_of_a_short_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    console = pytest.importorskip("rich.console", reason="pip install 'rmcla-fast[train]'")
    written = io.StringIO()
    made = console.Console

    def terminal(**options: Any) -> Any:
        return made(file=written, width=80, force_terminal=bool(wide), color_system=None, highlight=False)

    monkeypatch.setattr(console, "Console", terminal)
    for wide in (True, False):
        with Display(1000, 500) as display:
            if wide:
                display.update(500, "100/200", 1.65, 12345.0)
            seen, of_weights = Accuracies(93.75, 78.12, 76.56), Accuracies(93.0, 80.0, 77.0)
            display.measured(500, "100/200", 1.65, Measured(seen, of_weights), 60.0)
        shown = written.getvalue()
        assert "loss 1.650" in shown
        assert "clean 93.8 FGSM 78.1 PGD 76.6 %" in shown
        assert "…" not in shown
        assert ("(average; PGD 77.0 % without averaging)" in " ".join(shown.split())) is not wide
        written.truncate(0)
