"""Distributed training: the processes that torchrun starts share each batch equally and average their gradients.

The command is `torchrun --nproc-per-node 8 -m rmcla_fast.cli train ...`. Each process has a GPU or a share of the CPU
cores. The batch size counts the images of all ranks together. The attack needs no communication, and each rank draws
its own noise. Batch norm normalises by the images of its own rank. The running statistics are those of rank 0, which
also measures the held-out images and writes the files.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rmcla_fast.errors import RunFailed, UserError

Value = TypeVar("Value")
TIMEOUT = timedelta(minutes=10)  # how long ranks wait for a lost one, or for rank 0 while it writes


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes. A process on its own is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that measures the held-out images and writes the files."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Return the rank's own seed, which has the rank in its upper 32 bits."""
        return (self.rank << 32) | seed

    def torch_seed(self, seed: int) -> int:
        """Return the rank's own seed for torch's generators. The CPU's generator reads only the lower 32 bits."""
        return int(np.random.SeedSequence((seed, self.rank)).generate_state(1)[0])

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model with gradients averaged over the ranks, or the model itself if there is only one rank."""
        if self.size == 1:
            return model
        warnings.filterwarnings("ignore", "Grad strides do not match")  # the stride of a size of 1 has no effect
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the ranks."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether `flag` holds on any rank."""
        if self.size == 1:
            return flag
        return bool(self.mean(torch.full((), float(flag), dtype=torch.float32, device=device)) > 0)

    def gathered(self, value: Value) -> list[Value]:
        """Return every rank's value, in the order of the ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every rank has called this method."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def world_size() -> int:
    """Return the number of processes that torchrun started, or 1 for a process on its own.

    Raises:
        UserError: the environment's WORLD_SIZE is not such a number.
    """
    return _environment("WORLD_SIZE", 1, at_least=1)


def is_main_process() -> bool:
    """Return whether this process is rank 0 of those that torchrun started, or was not started by it."""
    return world_size() == 1 or _environment("RANK", 0, at_least=0) == 0


def _environment(name: str, usual: int, *, at_least: int) -> int:
    text = os.environ.get(name, str(usual))
    if not text.isdecimal() or int(text) < at_least:
        raise UserError(
            f"the environment variable {name} must be a whole number of at least {at_least}, as torchrun sets it; "
            f"it is {text!r}"
        )
    return int(text)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    Raises:
        UserError: torchrun's environment variables are incomplete, or the ranks do not find one another.
        RunFailed: a rank was lost; the last checkpoint is kept.
    """
    size = world_size()
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's barrier and gathers use the current device
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {size} processes did not find one another ({str(error).splitlines()[0]})") from error
    world = World(dist.get_rank(), size)
    try:
        try:
            yield world
            world.wait()
        finally:
            # gloo's threads may still hold the tensors of the last calls, and need the interpreter lock to free them.
            # Here they can take it. A thread that waits for the lock when the interpreter ends aborts the process, and
            # one that waits when the group is freed waits for ever, since the group waits for the thread.
            time.sleep(0.5)
    except RuntimeError as error:
        if not lost(error):
            raise
        raise RunFailed(
            f"rank {world.rank} of {size} lost a peer; "
            "start all ranks again with --resume to go on from the last checkpoint"
        ) from error
    else:
        dist.destroy_process_group()  # not after an error, since it would wait for the lost ranks


def local_device(name: str | None) -> str | None:
    """Return this rank's own GPU if torchrun started the process and `name` is None or "cuda"; else return `name`."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name in (None, "cuda") and rank is not None and torch.cuda.is_available() else name


def lost(error: RuntimeError) -> bool:
    """Return whether a collective operation failed because another rank is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "peer", "timed out"))
