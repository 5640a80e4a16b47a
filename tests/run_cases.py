"""Short training runs for the tests: in this process, or in another one that can be stopped."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rmcla_fast import cli
from rmcla_fast.training import TrainConfig, checkpoint
from rmcla_fast.training.loader import Loader

Batch = tuple[Tensor, Tensor]
ROOT = Path(__file__).parents[1]
SMALL = TrainConfig(  # always on the CPU, where a run repeats bit for bit
    data="digits", images_per_class=20, epochs=2, batch_size=32, device="cpu", threads=1, monitor_every=1, log_every=2
)


def small(out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(SMALL, out=str(out), **changes)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, change: Callable[[Batch], Batch]) -> None:
    """Replace the batch of this step by `change(batch)`, for every run that follows."""
    epoch = Loader.epoch

    def changed(self: Loader, number: int, first: int = 0) -> Iterator[Batch]:
        for place, batch in enumerate(epoch(self, number, first), start=number * self.steps + first):
            yield change(batch) if place == step else batch

    monkeypatch.setattr(Loader, "epoch", changed)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def place(number: int, port: int) -> None:
    """Make this process rank `number` of two, as torchrun does."""
    variables = {"RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})


def rmcla(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    return cli.run([str(argument) for argument in arguments])


def python(*arguments: object, before: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
    """Start another Python that imports the package from this tree; `communicate` reads its output.

    `before` is a command that starts Python in its turn.
    """
    # `filter` drops an empty PYTHONPATH, which would stand for the working folder.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [*before, sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint as nested dictionaries."""
    return dataclasses.asdict(checkpoint.read(path))


def change_checkpoint(path: Path, **changes: Any) -> None:
    """Change entries of a checkpoint, which keeps a valid checksum. Those of "config" are added to its own."""
    state = torch.load(path, weights_only=True)
    config = state["config"] | changes.pop("config", {})
    checkpoint.save(path, {**state, **changes, "config": config})


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not (out / checkpoint.LAST).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
