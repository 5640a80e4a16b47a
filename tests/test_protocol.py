"""`--protocol`: what it sets, options that win over it, and the learning rate of torch's OneCycleLR."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from run_cases import rmcla, small
from torch import nn

from rmcla_fast.errors import UserError
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.remarks import remarks
from rmcla_fast.training.resolve import resolve
from rmcla_fast.training.schedule import Schedule


def test_the_protocol_sets_what_the_benchmark_sets() -> None:
    config = resolve(TrainConfig(data="cifar10", protocol="fastat", recipe="n-fgsm"))
    assert (config.model, config.epochs, config.batch_size) == ("resnet18", 100, 128)
    assert (config.lr, config.schedule, config.momentum) == (0.1, "one-cycle-cosine", 0.9)
    assert (config.weight_decay, config.label_smoothing, config.ema) == (5e-4, 0.4, 0.9995)
    assert (config.monitor_images, config.monitor_every, config.epsilon) == (1000, 1, 8 / 255)
    assert remarks(config, 39_100, 50_000) == []
    digits = resolve(TrainConfig(data="digits", protocol="fastat"))
    assert (digits.epsilon, digits.clip_grad, digits.augment) == (0.15, 0.0, False)  # otherwise they cannot be learnt
    assert remarks(digits, 39_100, 50_000) == []
    assert remarks(resolve(TrainConfig(data="cifar10")), 10, 50_000) == []
    assert "--ema 0.9995 averages over more updates than the 1,000 of this run" in remarks(config, 1000, 50_000)[0]


def test_a_switch_is_shown_as_it_is_given() -> None:
    (said,) = remarks(resolve(TrainConfig(data="cifar10", protocol="fastat", augment=False)), 39_100, 50_000)
    assert said == "--protocol fastat sets --augment; the run takes --no-augment"


def test_a_run_says_that_it_holds_out_fewer_images_than_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(tmp_path / "a", epochs=1, monitor_images=2000), quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search("--monitor-images 2,000 are more than a tenth of the training images, so [1-9]\\d* are held", said)


def test_an_option_wins_over_the_protocol_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    config = small(out, protocol="fastat", model="small-cnn", epochs=1, lr=0.1, monitor_images=0)
    train(config, quiet=False)
    said = capsys.readouterr().err
    for words in ("--model resnet18; the run takes small-cnn", "--epochs 100; the run takes 1"):
        assert f"--protocol fastat sets {words}" in said.replace("\n", " ")
    assert "--lr" not in said
    resumed = dataclasses.replace(config, resume=True)
    assert train(resumed) == out  # it is finished
    with pytest.raises(UserError, match=r"was started with --label-smoothing 0.4 and cannot be resumed with 0.1"):
        train(dataclasses.replace(resumed, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "slowat"], "--protocol must be one of fastat; got slowat"),
        (["--label-smoothing", "1"], "--label-smoothing must be in [0, 1); got 1.0"),
        (["--label-smoothing", "-0.1"], "--label-smoothing must be in [0, 1); got -0.1"),
        (["--ema", "1"], "--ema must be in [0, 1); got 1.0"),
        (["--recipe", "n-fgsm,label_smoothing=0.1"], "which is an option; give --label-smoothing"),
        (["--recipe", "n-fgsm,epsilon=0.1"], "which is an option; give --epsilon"),
        (["--recipe", "n-fgsm,target=nearest"], "target must be one of"),
        (["--recipe", "n-fgsm,start_ratio=-2"], "start_ratio must be finite and not"),
    ],
)
def test_a_bad_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert rmcla("train", "--data", "digits", "--out", tmp_path / "a", *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "a").exists()


def test_the_cosine_is_that_of_torch() -> None:
    """The rates of torch's OneCycleLR, whose last step reaches its end, while ours is the limit after the last."""
    steps = 1000
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    ours = Schedule("one-cycle-cosine", 0.1, steps)
    for step in range(steps):
        assert ours.rate(step) == pytest.approx(theirs.get_last_lr()[0], abs=4e-4)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()
    assert ours.rate(0) == pytest.approx(0.1 / 25)
    assert ours.rate(300) == pytest.approx(0.1)
