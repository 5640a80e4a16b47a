"""The average of the weights in a run: its beginning, the best checkpoint, and runs that are stopped and resumed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import read_checkpoint, small
from step_cases import batch, network, recipe, sgd
from torch import nn

import rmcla_fast
from rmcla_fast.training import ExponentialAverage, TrainStep, checkpoint, train
from rmcla_fast.training.interrupt import StopRequest
from rmcla_fast.training.metrics import read_metrics
from rmcla_fast.training.monitor import Accuracies, Monitor

NEW = {"ema": 0.9, "label_smoothing": 0.3, "recipe": "n-fgsm,start_ratio=1.5"}


def test_an_average_begins_anew_until_it_is_longer_than_its_horizon(tmp_path: Path) -> None:
    """Six updates are an epoch. With a decay of 0.9 the horizon is ten, so the first one ends with a new beginning."""
    train(small(tmp_path / "one", epochs=1, ema=0.9))
    state = read_checkpoint(tmp_path / "one" / "checkpoint.pt")
    assert all(torch.equal(state["ema"][name], value) for name, value in state["model"].items())
    train(small(tmp_path / "three", epochs=3, ema=0.9))
    state = read_checkpoint(tmp_path / "three" / "checkpoint.pt")
    assert not torch.equal(state["ema"]["classifier.weight"], state["model"]["classifier.weight"])
    assert [ExponentialAverage(nn.Linear(2, 2), decay).horizon for decay in (0.0, 0.9, 0.999, 0.9995)] == [
        *(1, 10, 1000, 2000)
    ]


def test_restarting_keeps_the_memory_of_the_average() -> None:
    """A captured CUDA graph goes on writing into it."""
    model = network()
    ema = ExponentialAverage(model, 0.9)
    step = TrainStep(model, sgd(model), recipe("n-fgsm"), ema=ema)
    step(*batch())
    before = {name: value.data_ptr() for name, value in ema.module.state_dict().items()}
    ema.restart(model)
    after = ema.module.state_dict()
    assert {name: value.data_ptr() for name, value in after.items()} == before
    assert all(torch.equal(after[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("of_average", "of_weights", "best_of", "epoch"),
    [
        ([50.0, 40.0], [30.0, 45.0], "average", 1),
        ([50.0, 40.0], [30.0, 55.0], "weights", 2),
        ([50.0, 40.0], [60.0, 55.0], "weights", 1),
        ([50.0, 50.0], [50.0, 50.0], "average", 2),  # the later one, and the average
    ],
)
def test_the_best_checkpoint_is_the_better_of_the_weights_and_their_average(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_average: list[float],
    of_weights: list[float],
    best_of: str,
    epoch: int,
) -> None:
    answers = {True: iter(of_average), False: iter(of_weights)}

    def measure(self: Monitor, model: nn.Module) -> Accuracies:
        averaged = not next(model.parameters()).requires_grad
        return Accuracies(70.0, 60.0, next(answers[averaged]))

    monkeypatch.setattr(Monitor, "measure", measure)
    out = train(small(tmp_path / "a", ema=0.9, epochs=2))
    state = read_checkpoint(out / "best.pt")
    assert (state["epoch"], state["schedule"]["best_of"]) == (epoch, best_of)
    expected = state["model"] if best_of == "weights" else state["ema"]
    loaded = rmcla_fast.load(out, which="best").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    last = rmcla_fast.load(out).state_dict()
    average = read_checkpoint(out / "checkpoint.pt")["ema"]
    assert all(torch.equal(last[name], value) for name, value in average.items())
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "pgd" in row]
    assert [row["pgd"] for row in rows] == of_average
    assert [row["weights_pgd"] for row in rows] == of_weights


def test_a_run_without_an_average_measures_its_weights_alone(tmp_path: Path) -> None:
    out = train(small(tmp_path / "a"))
    assert all("weights_pgd" not in row for row in read_metrics(out / "metrics.jsonl"))
    assert read_checkpoint(out / "best.pt")["schedule"]["best_of"] == "average"
    loaded, state = rmcla_fast.load(out, which="best").state_dict(), read_checkpoint(out / "best.pt")["model"]
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_overfitting_of_the_weights_is_seen_behind_their_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(self: Monitor, model: nn.Module) -> Accuracies:
        return Accuracies(99.0, 95.0, 3.0 if next(model.parameters()).requires_grad else 60.0)

    monkeypatch.setattr(Monitor, "measure", measure)
    train(small(tmp_path / "a", ema=0.9, epochs=1), quiet=False)
    assert "catastrophic overfitting begins at epoch 1" in capsys.readouterr().err


@pytest.mark.parametrize("stopped_at", [3, 6, 8])
def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    whole = train(small(tmp_path / "whole", epochs=3, **NEW))
    out, calls = tmp_path / "stopped", [0]

    def asked(self: StopRequest) -> Any:
        calls[0] += 1
        return signal.SIGINT if calls[0] >= stopped_at else None

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "signal", property(asked, lambda self, value: None), raising=False)
        with pytest.raises(BaseException, match="stopped by SIGINT"):
            train(small(out, epochs=3, **NEW))
    train(small(out, epochs=3, resume=True, **NEW))
    for name in (checkpoint.LAST, checkpoint.BEST):
        ours, theirs = read_checkpoint(out / name), read_checkpoint(whole / name)
        for part in ("model", "ema"):
            assert all(torch.equal(ours[part][key], value) for key, value in theirs[part].items())
        for key in ("best", "best_of", "epoch_loss"):
            assert ours["schedule"][key] == theirs["schedule"][key]
        assert ours["rng"]["step"] == theirs["rng"]["step"]
    first, second = (
        [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]
        for rows in (read_metrics(folder / "metrics.jsonl") for folder in (out, whole))
    )
    assert first == second


def test_an_average_of_another_network_is_refused() -> None:
    model = network()
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(
        ValueError, match="ema must be an average of this model; its weights and buffers have other shapes"
    ):
        TrainStep(model, sgd(model), recipe("n-fgsm"), ema=ExponentialAverage(other, 0.9))


def test_a_model_that_cannot_be_copied_is_refused_in_one_sentence() -> None:
    class Loaded(nn.Linear):
        def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
            raise RuntimeError("holds a file that is open\nand cannot be copied")

    with pytest.raises(ValueError, match=r"^model cannot be copied for its average: holds a file that is open$"):
        ExponentialAverage(Loaded(2, 2), 0.9)
