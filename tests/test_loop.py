"""A whole run in small: what it writes, watches, refuses, and how it stops."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import SMALL, small

import rmcla_fast
from rmcla_fast import data, models
from rmcla_fast.data import ImageSet
from rmcla_fast.errors import Interrupted, RunFailed, UserError
from rmcla_fast.training import TrainConfig, checkpoint, train
from rmcla_fast.training.batches import Batches, epoch_order, steps_in_epoch
from rmcla_fast.training.config import DEFAULTS
from rmcla_fast.training.monitor import Monitor, Watched
from rmcla_fast.training.progress import Display
from rmcla_fast.training.run_folder import read_metrics
from rmcla_fast.training.schedule import Schedule, build_optimizer, set_rate, warmed_up


def test_a_run_writes_its_folder(tmp_path: Path) -> None:
    out, threads = tmp_path / "runs" / "a", torch.get_num_threads()
    assert train(small(out)) == out
    names = {path.name.split(".tfevents")[0] for path in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoint.pt", "best.pt", "curves.png", "events.out"}
    config = json.loads((out / "config.json").read_text())
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= set(config)
    assert config["lr"] == DEFAULTS["digits"]["lr"]
    assert (config["num_classes"], config["channels"], config["epsilon"]) == (10, 1, 0.15)
    rows = read_metrics(out / "metrics.jsonl")
    steps, epochs = ([row for row in rows if row["kind"] == kind] for kind in ("step", "epoch"))
    assert [row["step"] for row in steps] == [2, 4, 6, 8, 10, 12]  # 200 images less 20 held out: 6 updates an epoch
    assert [row["step"] for row in epochs] == [6, 12]
    assert all(math.isfinite(row["loss"]) and row["lr"] > 0 for row in rows)
    assert all(0 <= row[name] <= 100 for row in epochs for name in ("clean", "fgsm", "pgd"))
    state = checkpoint.read(out / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (2, 12)
    assert torch.get_num_threads() == threads  # as it was
    logits = rmcla_fast.load(out)(torch.rand(3, 1, 8, 8))
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()


def test_an_existing_folder_is_refused_and_a_finished_run_left_alone(tmp_path: Path) -> None:
    train(small(tmp_path / "a", epochs=1))
    before = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="already holds something; go on with --resume"):
        train(small(tmp_path / "a", epochs=1))
    train(small(tmp_path / "a", epochs=1, resume=True))
    train(TrainConfig(out=str(tmp_path / "a"), resume=True, workers=1))
    assert (tmp_path / "a" / "checkpoint.pt").read_bytes() == before
    with pytest.raises(UserError, match="started with --epochs 1 and cannot be resumed with 2"):
        train(small(tmp_path / "a", epochs=2, resume=True))


def test_resume_starts_where_there_is_nothing(tmp_path: Path) -> None:
    train(small(tmp_path / "a", epochs=1, resume=True))
    (tmp_path / "a" / "checkpoint.pt").unlink()
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))  # config.json says how
    assert checkpoint.read(tmp_path / "a" / "checkpoint.pt")["step"] == 6
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 4
    with pytest.raises(UserError, match="there is no run"):
        train(TrainConfig(out=str(tmp_path / "nowhere"), resume=True))
    with pytest.raises(UserError, match="give --out"):
        train(TrainConfig(resume=True))


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "a"
    train(small(out, epochs=1))
    whole = (out / "checkpoint.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(whole[:2000])
    with pytest.raises(UserError, match="truncated"):
        train(small(out, epochs=1, resume=True))
    state = torch.load(out / "best.pt", weights_only=True)
    del state["model"]["classifier.bias"]
    state |= {"epoch": 0, "step": 0}  # not finished, so that it is taken up
    torch.save(state, out / "checkpoint.pt")
    with pytest.raises(UserError, match="does not fit"):
        train(small(out, epochs=1, resume=True))


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> torch.Tensor:
        train(small(tmp_path / name, epochs=1, **changes))
        state = checkpoint.read(tmp_path / name / "checkpoint.pt")["model"]
        return torch.cat([value.flatten().float() for value in state.values()])

    first = weights("a")
    assert torch.equal(first, weights("b"))
    assert not torch.equal(first, weights("c", seed=1))
    assert not torch.equal(first, weights("d", augment=True))


@pytest.mark.parametrize("recipe", ["standard", "r-mc-la+", "n-fgsm", "trades"])
def test_other_recipes_and_options_run(tmp_path: Path, recipe: str) -> None:
    options = {"ema": 0.9, "clip_grad": 1.0, "epsilon_warmup": 1, "augment": True, "skip_nonfinite": True}
    train(small(tmp_path / "a", recipe=recipe, epochs=1, schedule="piecewise", precision="bf16", **options))
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert rows[-1]["skipped"] == 0
    assert math.isfinite(rows[-1]["loss"])
    state = checkpoint.read(tmp_path / "a" / "checkpoint.pt")
    loaded = rmcla_fast.load(tmp_path / "a").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state["ema"].items())


def test_a_batch_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, fixed for the run, and taken up to the bit within an epoch whose last batch is smaller."""
    whole = small(tmp_path / "a", accumulate=4, checkpoint_every=2, epochs=1)
    train(whole)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["accumulate"] == 4
    draw = Batches._batch

    def stopped(self: Batches, index: Any, on_device: Any, step: int) -> Any:
        if step == 5:
            raise RunFailed("stopped")
        return draw(self, index, on_device, step)

    monkeypatch.setattr(Batches, "_batch", stopped)
    with pytest.raises(RunFailed):
        train(dataclasses.replace(whole, out=str(tmp_path / "b")))
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "b" / "checkpoint.pt")["step"] == 4
    with pytest.raises(UserError, match="started with --accumulate 4 and cannot be resumed with 2"):
        train(TrainConfig(out=str(tmp_path / "b"), resume=True, accumulate=2))
    train(TrainConfig(out=str(tmp_path / "b"), resume=True))
    ended, one = (checkpoint.read(tmp_path / name / "checkpoint.pt")["model"] for name in "ba")
    assert all(torch.equal(ended[name], one[name]) for name in one)


def test_without_held_out_images_nothing_is_watched(tmp_path: Path) -> None:
    train(small(tmp_path / "a", monitor_images=0, epochs=1))
    assert not (tmp_path / "a" / "best.pt").exists()
    assert "pgd" not in read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"of step \d+ is (nan|inf) at learning rate .*; there is no checkpoint yet"):
        train(small(tmp_path / "a", lr=1e30, schedule="piecewise"))
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Batches._batch

    def poisoned(self: Batches, index: Any, on_device: Any, step: int) -> Any:
        batch = draw(self, index, on_device, step)
        return batch._replace(images=torch.full(batch.images.shape, math.nan)) if step == 3 else batch

    monkeypatch.setattr(Batches, "_batch", poisoned)
    train(small(tmp_path / "a", skip_nonfinite=True))
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [row["skipped"] for row in rows if row["kind"] == "epoch"] == [1, 1]
    state = checkpoint.read(tmp_path / "a" / "checkpoint.pt")
    assert all(value.isfinite().all() for value in state["model"].values())
    for precision in ("fp32", "fp16"):  # which skips on its own, but only where gradients overflow
        with pytest.raises(RunFailed, match="the loss of step 3 is nan"):
            train(small(tmp_path / precision, precision=precision))


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    draw = Batches._batch

    def signalled(self: Batches, index: Any, on_device: Any, step: int) -> Any:
        if step == 7:
            os.kill(os.getpid(), number)
        return draw(self, index, on_device, step)

    monkeypatch.setattr(Batches, "_batch", signalled)
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=f"stopped by {number.name} at step 8 of 12; go on with: rmcla train --resume"
    ):
        train(small(tmp_path / "a"))
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "a" / "checkpoint.pt")["step"] == 8
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))
    train(small(tmp_path / "b"))
    ended, whole = (checkpoint.read(tmp_path / name / "checkpoint.pt") for name in "ab")
    assert all(torch.equal(ended["model"][name], whole["model"][name]) for name in whole["model"])
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in "ab"]
    assert losses[0] == losses[1]


def test_batches_cover_an_epoch_once_and_start_anywhere() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 6, 6).contiguous()
    held = ImageSet(images, torch.arange(10))
    batches = Batches(held, 4, seed=5, device=torch.device("cpu"), augment=True, flip=True, draw_start=True)
    batches.start_radius.fill_(0.1)
    epoch = list(batches.epoch(1))
    assert [len(batch.labels) for batch in epoch] == [4, 4, 2]
    assert torch.cat([batch.labels for batch in epoch]).tolist() == epoch_order(10, 5, 1).tolist()
    assert sorted(torch.cat([batch.labels for batch in epoch]).tolist()) == list(range(10))
    assert epoch_order(10, 5, 1).tolist() != epoch_order(10, 5, 2).tolist() != epoch_order(10, 6, 1).tolist()
    later = next(batches.epoch(1, first=2))
    assert torch.equal(later.images, epoch[2].images)
    assert torch.equal(later.start, epoch[2].start)  # type: ignore[arg-type]
    assert (later.start - later.images).abs().max() <= 0.1 + 1e-6  # type: ignore[operator]
    assert steps_in_epoch(9, 4) == 2  # a single image is left out
    with pytest.raises(UserError, match="has 3 training images, fewer than a batch"):
        steps_in_epoch(3, 4)


def test_schedules() -> None:
    piecewise = Schedule("piecewise", 0.1, 200)
    assert [piecewise.rate(step) for step in (0, 99, 100, 149, 150, 199)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01] + [1e-3] * 2
    )
    cycle = Schedule("one-cycle", 0.2, 1000)
    rates = [cycle.rate(step) for step in range(1000)]
    assert max(rates) == pytest.approx(0.2)
    assert rates.index(max(rates)) == 300
    assert rates[0] < 0.01
    assert 0 < rates[-1] < 1e-3
    assert [warmed_up(0.3, step, 2) for step in (0, 1, 2)] == pytest.approx([0.1, 0.2, 0.3])


def test_only_weights_decay() -> None:
    model = models.create("small-cnn", 10, 1)
    optimizer = build_optimizer(model, 0.1, 0.9, 5e-4)
    set_rate(optimizer, 0.05)
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (name.endswith("weight") and parameter.dim() > 1)
    assert all(float(group["lr"]) == pytest.approx(0.05) for group in optimizer.param_groups)


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


def five_classes(num_classes: int, channels: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))


def larger_images(num_classes: int, channels: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, num_classes))


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [("five_classes", r"must answer logits of shape \(1, 10\)"), ("larger_images", "cannot take")],
)
def test_a_model_that_does_not_fit_the_data_is_refused_before_anything_is_written(
    tmp_path: Path, factory: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(dataclasses.replace(SMALL, model=f"{__name__}:{factory}", out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
