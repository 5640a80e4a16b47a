"""A process that decodes images is lost, or /dev/shm is full: one sentence, and a run that resumes to the same bits."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import python, small
from torch import nn

from rmcla_fast.data import imagenet
from rmcla_fast.errors import OutOfMemory, RunFailed, UserError
from rmcla_fast.training import TrainConfig, checkpoint, train
from rmcla_fast.training.failures import not_started, reported
from rmcla_fast.training.resolve import resolve

Image = pytest.importorskip("PIL.Image")
MODEL = f"{__name__}:linear"


def linear(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, num_classes))


@pytest.fixture(name="options")
def _options(tmp_path: Path) -> dict[str, Any]:
    """Return the options of a run that streams twelve images, in three updates an epoch."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 256, (256, 256, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    options = {"data": "imagenet", "data_dir": str(tmp_path / "images"), "model": MODEL, "monitor_images": 0}
    return options | {"batch_size": 4, "epochs": 2, "workers": 1, "lr": 0.01, "device": "cpu", "threads": 1}


def test_a_killed_worker_is_reported_and_the_run_resumes(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TrainConfig(**options, out=str(tmp_path / "whole")))
    out, crop = tmp_path / "killed", imagenet.random_crop

    def kill(path: Path, draw: np.random.Generator) -> np.ndarray:
        if multiprocessing.parent_process() is not None and (out / checkpoint.LAST).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return crop(path, draw)

    monkeypatch.setattr(imagenet, "random_crop", kill)
    with pytest.raises(RunFailed, match=r"^a process that decodes images was lost \(DataLoader worker .*\); --resume "):
        train(TrainConfig(**options, out=str(out)))
    monkeypatch.undo()
    assert checkpoint.read(out / checkpoint.LAST).epoch == 1
    train(TrainConfig(out=str(out), resume=True, model=MODEL))
    resumed, whole = (checkpoint.read(folder / checkpoint.LAST).model for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_signal_to_the_process_group_does_not_reach_the_workers(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run needs them for the update that it finishes after the signal."""

    def tell(path: Path, draw: np.random.Generator) -> np.ndarray:
        raise UserError(f"the worker leads its own group: {os.getpgid(0) == os.getpid() != os.getppid()}")

    monkeypatch.setattr(imagenet, "random_crop", tell)
    with pytest.raises(RunFailed, match=r"^the worker leads its own group: True$"):
        train(TrainConfig(**options, out=str(tmp_path / "a")))


def may_mount() -> bool:
    """Return whether this process may replace /dev/shm for a child."""
    return (
        bool(shutil.which("unshare")) and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="mounting a small /dev/shm is not allowed here")
def test_a_full_shared_memory_is_reported_with_the_way_out(options: dict[str, Any], tmp_path: Path) -> None:
    """A batch has 600 kB. With 400 kB there is no place for it."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def linear(num_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))\n"
    )
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    flags[flags.index(MODEL)] = "mine:linear"
    mount = 'mount -t tmpfs -o size=400k tmpfs /dev/shm && exec "$@"'
    before = ("unshare", "-m", "sh", "-c", mount, "sh")
    run = python("-m", "rmcla_fast.cli", "train", "-q", *flags, "--out", "run", before=before, cwd=tmp_path)
    _, said = run.communicate(timeout=240)
    assert run.returncode == 1
    full = "/dev/shm, through which the workers pass their images, is full; make it larger, or give --workers 0"
    assert said == f"rmcla: {full}; --resume goes on from the last checkpoint\n"


BUS_ERROR = (
    "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
IN_WORKER = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)\n"
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BUS_ERROR, "/dev/shm, through which"),
        (IN_WORKER, "/dev/shm, through which"),
        (
            "DataLoader worker (pid 7) is killed by signal: Killed. ",
            "(DataLoader worker (pid 7) is killed by signal: Killed)",
        ),
        (
            "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
            "(DataLoader worker (pid(s) 7, 8) exited unexpectedly)",
        ),
    ],
)
def test_each_sentence_of_torch_about_a_worker_is_known(text: str, sentence: str) -> None:
    with pytest.raises(RunFailed) as raised, reported(resolve(small(Path("a"))), 1):
        raise RuntimeError(text)
    assert sentence in str(raised.value)
    assert str(raised.value).endswith("; --resume goes on from the last checkpoint")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("No space left on device"), RuntimeError("a bug"), ValueError("other")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, reported(resolve(small(Path("a"))), 1):
        raise error
    assert raised.value is error


def test_memory_of_a_worker_is_reported_as_such() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^not enough memory on this machine; start"),
        reported(resolve(small(Path("a"))), 1),
    ):
        raise MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback ...")


def test_workers_that_cannot_be_started_are_reported(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", refuse)
    with pytest.raises(RunFailed, match=r"^the processes that decode .* unavailable\); give fewer than 1 --workers"):
        train(TrainConfig(**options, out=str(tmp_path / "a")))
    assert str(not_started(OSError(28, "No space left on device"), 8)).startswith("/dev/shm, through which")
