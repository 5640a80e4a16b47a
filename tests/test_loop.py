"""Short training runs: the files that they write, the options that they refuse, and how they stop and resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import Batch, at_step, read_checkpoint, small

import rmcla_fast
from rmcla_fast.errors import Interrupted, RunFailed, UserError
from rmcla_fast.training import TrainConfig, checkpoint, train
from rmcla_fast.training.config import DEFAULTS
from rmcla_fast.training.distributed import World
from rmcla_fast.training.interrupt import StopRequest
from rmcla_fast.training.loop import _Run
from rmcla_fast.training.metrics import read_metrics


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
    assert [row["step"] for row in steps] == [
        2,
        4,
        6,
        8,
        10,
        12,
    ]  # 180 images, without the 20 held out, are 6 updates an epoch
    assert [row["step"] for row in epochs] == [6, 12]
    assert all(math.isfinite(row["loss"]) and row["lr"] > 0 for row in rows)
    assert all(0 <= row[name] <= 100 for row in epochs for name in ("clean", "fgsm", "pgd"))
    state = read_checkpoint(out / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (2, 12)
    assert torch.get_num_threads() == threads  # unchanged
    logits = rmcla_fast.load(out)(torch.rand(3, 1, 8, 8))
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()


def test_an_existing_folder_is_refused_and_a_finished_run_left_alone(tmp_path: Path) -> None:
    train(small(tmp_path / "a", epochs=1))
    before = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="is not empty; go on with --resume"):
        train(small(tmp_path / "a", epochs=1))
    train(small(tmp_path / "a", epochs=1, resume=True))
    train(TrainConfig(out=str(tmp_path / "a"), resume=True, workers=1))
    assert (tmp_path / "a" / "checkpoint.pt").read_bytes() == before
    with pytest.raises(UserError, match="started with --epochs 1 and cannot be resumed with 2"):
        train(small(tmp_path / "a", epochs=2, resume=True))


def test_resume_starts_a_run_that_has_no_checkpoint(tmp_path: Path) -> None:
    train(small(tmp_path / "a", epochs=1, resume=True))
    for name in (checkpoint.LAST, checkpoint.BEST):
        (tmp_path / "a" / name).unlink(missing_ok=True)
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))  # the options come from config.json
    assert read_checkpoint(tmp_path / "a" / "checkpoint.pt")["step"] == 6
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 4
    with pytest.raises(UserError, match="there is no run"):
        train(TrainConfig(out=str(tmp_path / "nowhere"), resume=True))
    with pytest.raises(UserError, match="give --out"):
        train(TrainConfig(resume=True))


def test_a_damaged_checkpoint_raises_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "a"
    train(small(out, epochs=1))
    whole = (out / "checkpoint.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(whole[:2000])
    with pytest.raises(UserError, match="cut short"):
        train(small(out, epochs=1, resume=True))
    state = torch.load(out / "best.pt", weights_only=True)
    del state["model"]["classifier.bias"]
    state |= {"epoch": 0, "step": 0}  # so that the run does not count as finished
    checkpoint.save(out / "checkpoint.pt", state)
    with pytest.raises(UserError, match="does not fit"):
        train(small(out, epochs=1, resume=True))


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> torch.Tensor:
        train(small(tmp_path / name, epochs=1, **changes))
        state = read_checkpoint(tmp_path / name / "checkpoint.pt")["model"]
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
    state = read_checkpoint(tmp_path / "a" / "checkpoint.pt")
    loaded = rmcla_fast.load(tmp_path / "a").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state["ema"].items())


def test_a_run_with_batches_in_pieces_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accumulate` is recorded and cannot change. A run stopped within an epoch resumes to the same bits."""
    whole = small(tmp_path / "a", accumulate=4, checkpoint_every=2, epochs=1)
    train(whole)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["accumulate"] == 4

    def stop(batch: Batch) -> Batch:
        raise RunFailed("stopped")

    at_step(monkeypatch, 5, stop)
    with pytest.raises(RunFailed):
        train(dataclasses.replace(whole, out=str(tmp_path / "b")))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "b" / "checkpoint.pt")["step"] == 4
    with pytest.raises(UserError, match="started with --accumulate 4 and cannot be resumed with 2"):
        train(TrainConfig(out=str(tmp_path / "b"), resume=True, accumulate=2))
    train(TrainConfig(out=str(tmp_path / "b"), resume=True))
    ended, one = (read_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in "ba")
    assert all(torch.equal(ended[name], one[name]) for name in one)


def test_without_held_out_images_nothing_is_measured(tmp_path: Path) -> None:
    train(small(tmp_path / "a", monitor_images=0, epochs=1))
    assert not (tmp_path / "a" / "best.pt").exists()
    assert "pgd" not in read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"of step \d+ is (nan|inf) at learning rate .*; there is no checkpoint yet"):
        train(small(tmp_path / "a", lr=1e30, schedule="piecewise"))
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


def poisoned(batch: Batch) -> Batch:
    images, labels = batch
    return torch.full(images.shape, math.nan), labels


def test_a_loss_that_is_not_finite_midway_leaves_a_run_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 9, poisoned)
    last = tmp_path / "a" / "checkpoint.pt"
    with pytest.raises(RunFailed, match=rf"^the loss of step 9 is nan .*; the last good checkpoint is {last}; "):
        train(small(tmp_path / "a", checkpoint_every=2))
    assert read_checkpoint(last)["step"] == 8
    monkeypatch.undo()
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))
    train(small(tmp_path / "b"))
    ended, whole = (read_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in "ab")
    assert all(torch.equal(ended[name], whole[name]) for name in whole)


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3, poisoned)
    train(small(tmp_path / "a", skip_nonfinite=True))
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [row["skipped"] for row in rows if row["kind"] == "epoch"] == [1, 1]
    state = read_checkpoint(tmp_path / "a" / "checkpoint.pt")
    assert all(value.isfinite().all() for value in state["model"].values())
    for precision in ("fp32", "fp16"):  # fp16 by itself skips only updates whose gradients overflow
        with pytest.raises(RunFailed, match="the loss of step 3 is nan"):
            train(small(tmp_path / precision, precision=precision))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:

    def signalled(batch: Batch) -> Batch:
        os.kill(os.getpid(), number)
        return batch

    at_step(monkeypatch, 7, signalled)
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=f"stopped by {number.name} at step 8 of 12; go on with: rmcla train --resume"
    ):
        train(small(tmp_path / "a"))
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "a" / "checkpoint.pt")["step"] == 8
    train(TrainConfig(out=str(tmp_path / "a"), resume=True))
    train(small(tmp_path / "b"))
    ended, whole = (read_checkpoint(tmp_path / name / "checkpoint.pt") for name in "ab")
    assert all(torch.equal(ended["model"][name], whole["model"][name]) for name in whole["model"])
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in "ab"]
    assert losses[0] == losses[1]


def test_an_interrupted_run_of_several_processes_names_the_command_that_starts_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(batch: Batch) -> Batch:
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    at_step(monkeypatch, 3, stop)
    interrupted = _Run._interrupted

    def of_two(run: _Run, stop: StopRequest) -> None:
        run.parts = dataclasses.replace(run.parts, world=World(0, 2))
        interrupted(run, stop)

    monkeypatch.setattr(_Run, "_interrupted", of_two)
    with pytest.raises(Interrupted, match=r"go on with: torchrun --nproc-per-node 2 -m rmcla_fast\.cli train"):
        train(small(tmp_path / "a", epochs=1))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_that_has_lost_its_checkpoint_goes_on_from_the_best_one(tmp_path: Path, epochs: int) -> None:
    """It must not begin anew, which would remove its metrics and its best checkpoint."""
    whole = train(small(tmp_path / "whole", epochs=epochs, monitor_images=20, monitor_every=1))
    lost = train(small(tmp_path / "lost", epochs=epochs, monitor_images=20, monitor_every=1))
    epoch = checkpoint.read(lost / checkpoint.BEST).epoch
    (lost / checkpoint.LAST).unlink()
    before = (lost / "metrics.jsonl").read_text().splitlines()
    train(TrainConfig(out=str(lost), resume=True))
    ended, resumed = (checkpoint.read(folder / checkpoint.LAST) for folder in (whole, lost))
    assert resumed.epoch == epochs
    assert all(torch.equal(resumed.model[name], ended.model[name]) for name in ended.model)
    epochs = [line for line in (lost / "metrics.jsonl").read_text().splitlines() if '"epoch", ' in line]
    assert epochs[:epoch] == [line for line in before if '"epoch", ' in line][:epoch]
