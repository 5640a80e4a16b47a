"""Checkpoints are written completely or not at all, are read without running code, and load as the trained model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import Malicious
from torch import nn

import rmcla_fast
from rmcla_fast import models
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.training import checkpoint


def state(model: nn.Module, name: str = "small-cnn", ema: dict[str, Any] | None = None) -> dict[str, Any]:
    config = {"model": name, "num_classes": 10, "channels": 1}
    rest = {"optimizer": {}, "schedule": {}, "rng": {}, "epoch": 1, "step": 2, "config": config}
    return {"model": model.state_dict(), "ema": ema, **rest}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return models.create("small-cnn", 10, 1)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_a_saved_checkpoint_can_be_read(tmp_path: Path, model: nn.Module) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", state(model))
    read = checkpoint.read(tmp_path / "checkpoint.pt")
    assert tuple(read) == checkpoint.KEYS
    assert read["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_load_gives_the_model_in_evaluation_mode(tmp_path: Path, model: nn.Module) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", state(model))
    loaded = rmcla_fast.load(tmp_path)
    assert not loaded.training
    assert same(loaded, model)
    with pytest.raises(UserError, match=r"there is no checkpoint .*best\.pt"):
        rmcla_fast.load(tmp_path, which="best")
    with pytest.raises(UserError, match="which must be 'last' or 'best'; got 'first'"):
        rmcla_fast.load(tmp_path, which="first")


def test_load_takes_the_average_of_the_weights_if_there_is_one(tmp_path: Path, model: nn.Module) -> None:
    average = models.create("small-cnn", 10, 1)
    checkpoint.save(tmp_path / "checkpoint.pt", state(model, ema=average.state_dict()))
    assert same(rmcla_fast.load(tmp_path), average)


def factory(num_classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels, num_classes))


def test_a_factory_is_imported_only_when_it_is_named_again(tmp_path: Path) -> None:
    ours = factory(10, 1)
    checkpoint.save(tmp_path / "checkpoint.pt", state(ours, name=f"{__name__}:factory"))
    with pytest.raises(UserError, match="name it again"):
        rmcla_fast.load(tmp_path)
    assert same(rmcla_fast.load(tmp_path, model=f"{__name__}:factory"), ours)
    assert same(rmcla_fast.load(tmp_path, model=factory(10, 1)), ours)


def test_weights_that_do_not_fit_the_model_are_an_error(tmp_path: Path, model: nn.Module) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", state(model))
    with pytest.raises(UserError, match="do not fit the model preact-resnet18"):
        rmcla_fast.load(tmp_path, model="preact-resnet18")
    with pytest.raises(UserError, match="do not fit the model Linear"):
        rmcla_fast.load(tmp_path, model=nn.Linear(2, 2))
    checkpoint.save(tmp_path / "checkpoint.pt", state(model, name="no-such-model"))
    with pytest.raises(UserError, match="no model is called 'no-such-model'"):
        rmcla_fast.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 1000, -100])
def test_a_truncated_checkpoint_is_an_error(tmp_path: Path, model: nn.Module, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state(model))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"checkpoint\.pt is truncated or was not written by rmcla_fast"):
        checkpoint.read(path)


def test_a_checkpoint_of_another_program_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="it has no 'model', 'ema'"):
        checkpoint.read(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(UserError, match="not a checkpoint of rmcla_fast"):
        checkpoint.read(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_a_malicious_checkpoint_does_not_run(tmp_path: Path, write: Any) -> None:
    mark = tmp_path / "it-ran"
    write({"model": Malicious(mark)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not written by rmcla_fast"):
        rmcla_fast.load(tmp_path)
    assert not mark.exists()


def test_a_failed_write_keeps_the_old_checkpoint(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state(model))
    before = path.read_bytes()

    def full(what: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunFailed, match=r"No space left on device\); the previous checkpoint is kept"):
        checkpoint.save(path, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]
