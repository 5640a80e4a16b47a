"""The options of a run: their defaults, and one sentence for each bad value, before anything is written."""

from __future__ import annotations

import dataclasses
import enum
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import SMALL, small

from rmcla_fast import data
from rmcla_fast.data import DATASETS
from rmcla_fast.errors import UserError
from rmcla_fast.options import check
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.build import build, choose_device
from rmcla_fast.training.distributed import World
from rmcla_fast.training.resolve import resolve, resumed


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": None}, "--data is missing"),
        ({"data": "mnist"}, "unknown data set 'mnist'"),
        ({"epochs": 0}, "--epochs must be at least 1; got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"accumulate": 0}, "--accumulate must be at least 1; got 0"),
        ({"lr": -1.0}, "--lr must be positive, and finite as a float32; got -1"),
        ({"lr": math.nan}, "--lr must be positive, and finite as a float32"),
        ({"lr": 1e308}, "--lr must be positive, and finite as a float32"),
        ({"beta": 0.0}, "--beta must be positive"),
        ({"momentum": 1.0}, r"--momentum must be in \[0, 1\)"),
        ({"ema": 1.5}, r"--ema must be in \[0, 1\)"),
        ({"schedule": "cosine"}, "--schedule must be one of piecewise, one-cycle, one-cycle-cosine; got cosine"),
        ({"precision": "fp8"}, "--precision must be one of"),
        ({"capture": "magic"}, "--capture must be one of"),
        ({"seed": -1}, "--seed must be in"),
        ({"epsilon": "8"}, "write 8/255 or 0.031373"),
        ({"epochs": "3"}, "--epochs must be a whole number; got '3'"),
        ({"epochs": 3.0}, "--epochs must be a whole number; got 3.0"),
        ({"seed": True}, "--seed must be a whole number; got True"),
        ({"lr": "0.1"}, "--lr must be a number; got '0.1'"),
        ({"epsilon": [8, 255]}, r"--epsilon must be a number or text; got a list of 2"),
        ({"augment": 1}, "--augment must be True or False; got 1"),
        ({"model": torch.nn.Linear}, "--model must be text; got "),
        ({"out": 5}, "--out must be text or a path; got 5"),
    ],
)
def test_a_bad_value_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(dataclasses.replace(SMALL, **changes))


class Network(str, enum.Enum):
    SMALL = "small-cnn"


def test_values_of_subclasses_become_plain_ones() -> None:
    """A checkpoint, which is read without running code, could not hold them."""
    options = {"lr": np.float64(0.5), "model": Network.SMALL, "recipe": np.str_("r-mc"), "batch_size": signal.SIGINT}
    config = resolve(dataclasses.replace(SMALL, **options))
    assert (config.lr, config.model, config.recipe, config.batch_size) == (0.5, "small-cnn", "r-mc", 2)
    assert {type(value) for value in dataclasses.asdict(config).values()} <= {bool, int, float, str, type(None)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 500}, "fewer than a batch"),
        ({"accumulate": 3}, "--accumulate 3 needs a --batch-size that gives 3 equal pieces .*; got 32"),
        ({"accumulate": 32}, "equal pieces of at least two images; got 32"),
        ({"recipe": "r-mcla"}, "no recipe is called 'r-mcla'; did you mean 'r-mc-la'"),
        ({"model": "small-cnm"}, "no model is called 'small-cnm'"),
        ({"device": "cuda:77"}, "--device cuda:77 cannot be used"),
        ({"device": "toaster"}, "--device toaster cannot be used"),
        ({"capture": "cuda-graph", "device": "cpu"}, "capture 'cuda-graph' is not possible"),
        ({"stop_on_overfitting": True, "monitor_images": 0}, "needs images to watch"),
        ({"images_per_class": 100000}, "fewer than the 100000 images per class"),
    ],
)
def test_a_run_that_cannot_start_writes_nothing(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(small(tmp_path / "a", **changes))
    assert not (tmp_path / "a").exists()


def test_a_gpu_has_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `cuda` is not equal to `cuda:0`, which tensors on it report, so the two must not be mixed."""
    made: list[torch.device] = []

    def empty(size: int, device: torch.device) -> Any:
        made.append(device)
        return SimpleNamespace(device=torch.device("cuda:0"))

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(None) == choose_device("cuda") == torch.device("cuda:0")
    assert made == [torch.device("cuda")] * 2


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test pretends to run on a GPU without bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    with pytest.raises(UserError, match="--precision bf16 is not supported by an old GPU; use fp16 or fp32"):
        build(resolve(small(Path("a"), precision="bf16")), data.load("digits"), torch.device("cuda"), World())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        train(small(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written"):
        train(small(tmp_path / "file" / "a"))


def test_a_relative_data_folder_is_recorded_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve(TrainConfig(data="folder", data_dir="images"))
    assert config.data_dir == str(tmp_path / "images")
    monkeypatch.chdir("/")
    assert resolve(resumed(TrainConfig(resume=True), config)).data_dir == str(tmp_path / "images")
    assert resolve(TrainConfig(data="folder", data_dir="~/a")).data_dir == str(Path.home() / "a")


def test_each_data_set_has_its_defaults() -> None:
    for name in DATASETS:
        config = resolve(TrainConfig(data=name))
        check(config)  # the types of ResolvedConfig, which allow no None where there is a default
        assert config.beta == (11.0 if name == "cifar100" else 9.0)
    cifar = resolve(TrainConfig(data="cifar10"))
    facts = (cifar.model, cifar.epochs, cifar.batch_size, cifar.lr, cifar.weight_decay, cifar.schedule, cifar.epsilon)
    assert facts == ("wrn-28-10", 200, 128, 0.1, 2e-4, "piecewise", 8 / 255)
    digits = resolve(TrainConfig(data="digits"))
    facts = (digits.model, digits.epochs, digits.batch_size, digits.lr, digits.weight_decay, digits.schedule)
    assert facts == ("small-cnn", 60, 32, 0.2, 3e-3, "one-cycle")
    assert (digits.epsilon, digits.augment, digits.clip_grad, digits.threads) == (0.15, False, 1.0, 1)


def test_a_resumed_run_takes_what_was_not_given_from_its_record() -> None:
    recorded = resolve(small(Path("a"), seed=3, checkpoint_every=10))
    again = resolve(resumed(TrainConfig(resume=True, checkpoint_every=500), recorded))
    assert (again.seed, again.checkpoint_every) == (3, 500)
    assert resolve(resumed(TrainConfig(resume=True, data_dir=Path("/a")), recorded)).data_dir == "/a"
    with pytest.raises(UserError, match="started with --seed 3 and cannot be resumed with 0; leave --seed out"):
        resumed(TrainConfig(resume=True, seed=0), recorded)  # 0 is the default, but here it was given


def test_folders_may_be_paths(tmp_path: Path) -> None:
    config = resolve(TrainConfig(data="folder", data_dir=tmp_path, out=tmp_path / "run"))
    assert (config.data_dir, config.out) == (str(tmp_path), str(tmp_path / "run"))


def test_the_docstring_has_each_option_with_its_default() -> None:
    text = str(TrainConfig.__doc__)
    for field in dataclasses.fields(TrainConfig):
        assert f"\n        {field.name}: " in text
    assert "epochs: passes over the training images (default: 200; digits: 60; imagenet: 90)." in text
