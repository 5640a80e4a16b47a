"""Watching a run: accuracy on held-out images, catastrophic overfitting said and stopped, the progress bar."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import small

from rmcla_fast import data, models
from rmcla_fast.errors import RunFailed
from rmcla_fast.training import checkpoint, train
from rmcla_fast.training.monitor import Monitor, Watched
from rmcla_fast.training.progress import Display
from rmcla_fast.training.run_folder import read_metrics


def test_catastrophic_overfitting_is_said_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Monitor, "measure", lambda self, model: Watched(99.0, 95.0, 3.0))
    train(small(tmp_path / "a"), quiet=False)
    said = capsys.readouterr().err
    assert said.count("catastrophic overfitting begins at epoch 1") == 1
    assert [row["overfitting"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl") if "pgd" in row] == [True] * 2
    with pytest.raises(RunFailed, match="stopped at epoch 1, where catastrophic overfitting began"):
        train(small(tmp_path / "b", stop_on_overfitting=True))
    assert checkpoint.read(tmp_path / "b" / "checkpoint.pt")["epoch"] == 1
    train(small(tmp_path / "c", stop_on_overfitting=True, recipe="standard"))  # not adversarial training


def test_what_counts_as_overfitting() -> None:
    assert Watched(99, 95, 10).overfitted
    assert not Watched(91, 70, 55).overfitted  # the paper's R-MC-LA on CIFAR-10
    assert not Watched(69, 31, 23).overfitted  # and on CIFAR-100
    assert not Watched(20, 5, 1).overfitted  # the first epochs


def test_the_monitor_leaves_the_model_as_it_was() -> None:
    model = models.create("small-cnn", 10, 1)
    model.train()
    model.features.eval()  # type: ignore[operator,union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monitor = Monitor(data.load("digits", images_per_class=30).train, 0.15, torch.device("cpu"), 0)
    seen = monitor.measure(model)
    assert seen == monitor.measure(model)
    assert seen.pgd <= seen.clean + 5
    assert model.training
    assert not model.features.training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_display_fits_80_columns_and_says_the_loss_of_a_short_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
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
            display.watched(500, "100/200", 1.65, Watched(93.75, 78.12, 76.56), 60.0)
        shown = written.getvalue()
        assert "loss 1.650" in shown
        assert "clean 93.8 FGSM 78.1 PGD 76.6 %" in shown
        assert "…" not in shown
        written.truncate(0)
