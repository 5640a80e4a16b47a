"""Checkpoints are written completely or not at all, are read without running code, and load as the trained model."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import Malicious
from run_cases import change_checkpoint
from torch import nn

import rmcla_fast
from rmcla_fast import models, sealed
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.files import replacing
from rmcla_fast.training import TrainConfig, checkpoint
from rmcla_fast.training.record import Facts, RunRecord
from rmcla_fast.training.resolve import resolve


def state(model: nn.Module, name: str = "small-cnn", ema: dict[str, Any] | None = None) -> dict[str, Any]:
    options = resolve(TrainConfig(data="digits", model=name))
    facts = Facts(num_classes=10, channels=1, image_size=(8, 8), train_images=1437)
    progress = {"name": "one-cycle", "best": 1.0, "epoch_loss": 0.0, "recent": [], "warned": False}
    return {
        "model": model.state_dict(),
        "ema": ema,
        "optimizer": {},
        "schedule": {**progress, "total_steps": 10, "epoch_count": 0, "seconds": 0.5},
        "rng": {"step": {"step": 2}, "torch": torch.get_rng_state(), "cuda": [], "others": []},
        "epoch": 1,
        "step": 2,
        "config": RunRecord(options, facts).as_json(),
    }


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
    assert (read.epoch, read.step, read.schedule.best) == (1, 2, 1.0)
    assert set(torch.load(tmp_path / "checkpoint.pt", weights_only=True)) == set(vars(read))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_load_gives_the_model_in_evaluation_mode(tmp_path: Path, model: nn.Module) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", state(model))
    loaded = rmcla_fast.load(tmp_path)
    assert not loaded.training
    assert same(loaded, model)
    with pytest.raises(UserError, match=r"there is no checkpoint .*best\.pt; take checkpoint\.pt with --which last"):
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
    with pytest.raises(
        UserError, match=r"^the weights in .*checkpoint\.pt belong to the factory .*:factory; name it again"
    ):
        rmcla_fast.load(tmp_path)
    assert same(rmcla_fast.load(tmp_path, model=f"{__name__}:factory"), ours)
    assert same(rmcla_fast.load(tmp_path, model=factory(10, 1)), ours)


def test_weights_that_do_not_fit_the_model_are_an_error(tmp_path: Path, model: nn.Module) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", state(model))
    with pytest.raises(UserError, match=r"^the weights in .*checkpoint\.pt do not fit the model preact-resnet18$"):
        rmcla_fast.load(tmp_path, model="preact-resnet18")
    with pytest.raises(UserError, match="do not fit the model Linear"):
        rmcla_fast.load(tmp_path, model=nn.Linear(2, 2))
    checkpoint.save(tmp_path / "checkpoint.pt", state(model, name="no-such-model"))
    with pytest.raises(UserError, match="no model is called 'no-such-model'"):
        rmcla_fast.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 1000, -1, -50, -100, -1000])
def test_a_checkpoint_that_was_cut_short_is_an_error(tmp_path: Path, model: nn.Module, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state(model))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"checkpoint\.pt is cut short or was not written by this version"):
        checkpoint.read(path)


def test_every_flipped_bit_is_noticed(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state(model))
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"checkpoint\.pt is (damaged|cut short)"):
            checkpoint.read(path)


def test_a_damaged_checkpoint_names_the_other_one_if_there_is_one(tmp_path: Path, model: nn.Module) -> None:
    for name in ("checkpoint.pt", "best.pt"):
        checkpoint.save(tmp_path / name, state(model))
    for name in ("checkpoint.pt", "best.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:99] + b"?" + whole[100:])
        copy = r"put a copy of .*best\.pt, which may be older, in its place"
        way_out = copy if name == "checkpoint.pt" else "--which last still works"
        with pytest.raises(UserError, match=rf"is damaged: its checksum .*; .*{way_out}"):
            checkpoint.read(tmp_path / name)
        (tmp_path / name).write_bytes(whole)
    for name in ("checkpoint.pt", "best.pt"):
        (tmp_path / name).write_bytes(whole[:99] + b"?" + whole[100:])
    for name in ("checkpoint.pt", "best.pt"):
        with pytest.raises(UserError, match="restore it from a copy, or start the run again in another folder"):
            checkpoint.read(tmp_path / name)
    (tmp_path / "best.pt").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="restore it from a copy, or start the run again in another folder"):
        checkpoint.read(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_another_program_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="does not end with a checksum"):
        checkpoint.read(path)
    checkpoint.save(path, {"state_dict": {}})
    with pytest.raises(UserError, match=r"not a checkpoint of rmcla_fast \(model is missing\)"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": -1}, "epoch must be 0 or more; got -1"),
        ({"step": "2"}, "step must be a whole number; got '2'"),
        ({"step": True}, "step must be a whole number; got True"),
        ({"model": None}, "model must be an object; got None"),
        ({"ema": 5}, "ema must be an object or nothing; got 5"),
        ({"rng": {}}, "rng.torch is missing"),
        ({"schedule": {"name": 5}}, "schedule.name must be text; got 5"),
        ({"config": {"epochs": 0}}, "--epochs must be at least 1; got 0"),
        ({"config": {"epsilon": "8"}}, "for 8 of 255 levels write 8/255"),
        ({"config": {"data": "elsewhere"}}, "unknown data set 'elsewhere'"),
        ({"config": {"num_classes": 1}}, "num_classes must be at least 2; got 1"),
        ({"config": {"num_classes": 10**400}}, "num_classes must fit 64 bits; got a number of many digits"),
        ({"config": {"image_size": [8]}}, "image_size must have 2 entries; got 1"),
        ({"config": {"classes": [1]}}, r"classes\[0\] must be text; got 1"),
    ],
)
def test_content_of_another_type_or_range_is_one_sentence(
    tmp_path: Path, model: nn.Module, changes: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state(model))
    change_checkpoint(path, **changes)
    with pytest.raises(UserError, match=rf"checkpoint\.pt is not a checkpoint of rmcla_fast \(.*{sentence}"):
        checkpoint.read(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_a_malicious_checkpoint_does_not_run(tmp_path: Path, write: Any) -> None:
    mark = tmp_path / "it-ran"
    with replacing(tmp_path / "checkpoint.pt") as file:
        write({"model": Malicious(mark)}, file)
        sealed.seal(file)
    with pytest.raises(UserError, match="was not written by rmcla_fast"):
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


def test_a_failed_first_write_gives_the_first_line_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(what: Any, file: Any) -> None:
        raise RuntimeError("the writer of torch failed\nits second line")

    monkeypatch.setattr(torch, "save", fail)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(RunFailed) as raised:
        checkpoint.save(path, {})
    why = "the writer of torch failed"
    after = "there is no earlier one, and --resume begins again"
    assert str(raised.value) == f"{path} could not be written ({why}); {after}"
