"""Two processes on the CPU (gloo) train the weights that one process trains, and report a lost rank."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from data_files import write_extra
from run_cases import Batch, at_step, free_ports, place, python, read_checkpoint, small, wait_for_checkpoint
from torch import nn

from rmcla_fast import data, recipes
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.training import TrainConfig, TrainStep, checkpoint, distributed, train
from rmcla_fast.training.distributed import World, is_main_process, joined
from rmcla_fast.training.metrics import read_metrics
from rmcla_fast.training.run_folder import RunFolder
from rmcla_fast.training.schedule import build_optimizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed"),
]


def updated(world: World, wrap: bool, accumulate: int, updates: int = 3) -> list[torch.Tensor]:
    """Return the weights after a few updates of R-MC-LA on this rank's share of each batch.

    The attack starts at the clean images, since each rank would draw different noise.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = build_optimizer(model, 0.1, 0.9, 5e-4)
    cpu = torch.device("cpu")
    recipe = recipes.get("r-mc-la").replace(epsilon=0.15, start="none")
    step = TrainStep(
        world.wrap(model, cpu) if wrap else model, optimizer, recipe, capture="eager", accumulate=accumulate
    )
    images, labels = data.load("digits").train.images[:48], data.load("digits").train.labels[:48]
    mine = slice(world.rank, None, world.size)
    for _ in range(updates):
        step(images[mine], labels[mine])
    return [parameter.detach().clone() for parameter in model.parameters()]


def rank(number: int, port: int, accumulate: int, results: Any) -> None:
    torch.set_num_threads(1)
    place(number, port)
    with joined(torch.device("cpu")) as world:
        results[number] = updated(world, wrap=True, accumulate=accumulate)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_ranks_train_the_weights_of_one_process(accumulate: int) -> None:
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(rank, (*free_ports(1), accumulate, results), nprocs=2)
    alone = updated(World(), wrap=False, accumulate=1)
    for one, other, single in zip(results[0], results[1], alone, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, single, rtol=1e-5, atol=1e-6)


def rank_with_an_error(number: int, port: int) -> None:
    place(number, port)
    with suppress(RunFailed), joined(torch.device("cpu")) as world:
        for _ in range(100):
            world.mean(torch.rand(50))
        raise RunFailed("stopped")


@pytest.mark.parametrize("attempt", range(5))
def test_ranks_that_end_with_an_error_do_not_abort(attempt: int) -> None:
    """Without the pause in `joined`, a thread of gloo may wait for the interpreter lock at the end, and abort."""
    mp.spawn(rank_with_an_error, tuple(free_ports(1)), nprocs=2)


def dropping(num_classes: int) -> nn.Module:
    """Return a model with what differs between ranks: dropout masks and batch norm statistics, which attacks use."""
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout())
    return nn.Sequential(features, nn.Linear(144, num_classes))


def rank_of_a_run(number: int, ports: list[int], out: Path, extra: Path | None) -> None:
    """Train to the end, and then until an error. With a single port, resume the run that had the error."""
    place(number, ports[0])
    options = {"model": f"{__name__}:dropping", "epochs": 1, "checkpoint_every": 2, "device": "cpu"}
    options |= {} if extra is None else {"extra_data": extra}
    if len(ports) == 1:
        train(TrainConfig(out=str(out / "killed"), resume=True, model=options["model"]))
        return
    train(small(out / "whole", **options))

    def stop(batch: Batch) -> Batch:
        raise RunFailed("stopped")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, stop)
        patch.setenv("MASTER_PORT", str(ports[1]))
        with pytest.raises(RunFailed, match="stopped"):
            train(small(out / "killed", **options))


@pytest.mark.parametrize("with_extra", [False, True])
def test_two_ranks_with_dropout_resume_to_the_same_bits(with_extra: bool, tmp_path: Path) -> None:
    extra = write_extra(tmp_path / "more.npz", save=np.savez_compressed) if with_extra else None
    mp.spawn(rank_of_a_run, (free_ports(2), tmp_path, extra), nprocs=2)
    stopped = read_checkpoint(tmp_path / "killed" / checkpoint.LAST)
    assert stopped["step"] == 2
    assert not torch.equal(stopped["rng"]["torch"], stopped["rng"]["others"][0]["torch"])
    with pytest.raises(UserError, match="was started with 2 processes and cannot be resumed with 1"):
        train(TrainConfig(out=str(tmp_path / "killed"), resume=True, model=f"{__name__}:dropping"))
    mp.spawn(rank_of_a_run, (free_ports(1), tmp_path, extra), nprocs=2)
    whole, resumed = (read_checkpoint(tmp_path / name / checkpoint.LAST) for name in ("whole", "killed"))
    assert resumed["step"] == whole["step"] == 6
    assert all(torch.equal(resumed["model"][name], whole["model"][name]) for name in whole["model"])
    assert torch.equal(resumed["rng"]["others"][0]["torch"], whole["rng"]["others"][0]["torch"])


def rank_that_fails(number: int, port: int, out: Path, fault: str, results: Any) -> None:
    """Run one of two ranks. A rank with a fault is lost, or hangs; the other one puts its error into `results`."""
    place(number, port)
    distributed.TIMEOUT = timedelta(seconds=30)
    save = RunFolder.save

    def save_and_die(folder: RunFolder, state: dict[str, Any], *, best: bool = False) -> None:
        save(folder, state, best=best)
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(batch: Batch) -> Batch:
        if fault == "hangs":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        if fault == "saves and dies" and number == 0:
            patch.setattr(RunFolder, "save", save_and_die)
        if fault in ("dies", "hangs") and number == 1:
            at_step(patch, 3, fail)
        try:
            train(small(out, epochs=1, checkpoint_every=2))
        except RunFailed as error:
            results[number] = str(error)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights of an uninterrupted run of two ranks."""
    out = tmp_path_factory.mktemp("whole") / "run"
    mp.spawn(rank_that_trains, (*free_ports(1), out), nprocs=2)
    return checkpoint.read(out / checkpoint.LAST).model


@pytest.mark.parametrize(("fault", "left"), [("saves and dies", 1), ("dies", 0), ("hangs", 0)])
def test_a_rank_that_is_lost_or_hangs_is_reported_and_the_run_resumes(
    fault: str, left: int, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    context = mp.get_context("spawn")
    results, port, out = context.Manager().dict(), free_ports(1)[0], tmp_path / "run"
    ranks = [
        context.Process(target=rank_that_fails, args=(number, port, out, fault, results), daemon=True)
        for number in range(2)
    ]
    for one in ranks:
        one.start()
    ranks[left].join(timeout=240)
    assert ranks[left].exitcode == 0
    ranks[1 - left].kill()
    sentence = f"rank {left} of 2 lost a peer; start all ranks again with --resume to go on from the last checkpoint"
    assert dict(results) == {left: sentence}
    assert checkpoint.read(out / checkpoint.LAST).step == 2
    mp.spawn(rank_that_resumes, (*free_ports(1), out), nprocs=2)
    resumed = checkpoint.read(out / checkpoint.LAST).model
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def rank_that_resumes(number: int, port: int, out: Path) -> None:
    place(number, port)
    train(TrainConfig(out=str(out), resume=True))


def rank_that_trains(number: int, port: int, out: Path) -> None:
    place(number, port)
    train(small(out, epochs=1, checkpoint_every=2))


def torchrun(out: Path, *options: str) -> subprocess.Popen[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rmcla_fast.cli")
    run = ("train", "--data", "digits", "--device", "cpu", "--images-per-class", "20", "--threads", "1", "--out", out)
    return python(*launcher, *run, *options)


def test_torchrun_reports_a_lost_rank_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = torchrun(out, "--epochs", "9999")
    wait_for_checkpoint(out, process)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rmcla: " in said
    assert "resume" in said
    before = read_checkpoint(out / checkpoint.LAST)["epoch"]
    assert before >= 1
    (out / "metrics.jsonl").read_text()

    short = tmp_path / "short"
    for resume in ([], ["--resume"]):
        finished = torchrun(short, "--epochs", "2", *resume)
        _, said = finished.communicate(timeout=240)
        assert finished.returncode == 0, said
    assert read_checkpoint(short / checkpoint.LAST)["epoch"] == 2
    assert [row["epoch"] for row in read_metrics(short / "metrics.jsonl") if row["kind"] == "epoch"] == [1, 2]


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "x"), ("WORLD_SIZE", "0"), ("RANK", "-1")])
def test_an_environment_that_torchrun_did_not_set_is_one_sentence(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} must be a whole number of at least .*; it is '{value}'"):
        is_main_process()
