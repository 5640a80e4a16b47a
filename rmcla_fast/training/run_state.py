"""The state of a run, and the checkpoint that resumes it: everything that the rest of the run depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rmcla_fast.errors import UserError
from rmcla_fast.training.build import Parts
from rmcla_fast.training.checkpoint import Opened
from rmcla_fast.training.monitor import BEST_OF
from rmcla_fast.training.record import RunRecord


@dataclass
class RunState:
    """The progress of a run: finished epochs and updates, the best accuracy, time and losses."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # updates that are done
    best: float = -math.inf  # the highest PGD accuracy so far, in %
    best_of: str = BEST_OF[0]  # whether the "average" or the "weights" reached it
    warned: bool = False  # whether the last measurement showed catastrophic overfitting, with a warning
    seconds: float = 0.0  # of training
    epoch_loss: float = 0.0  # the sum over this epoch's updates so far
    epoch_count: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last logged step

    def state(self, parts: Parts, total_steps: int, record: RunRecord, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what `checkpoint.Checkpoint` declares. `ranks` is every rank's `own_state`."""
        return {
            "model": parts.model.state_dict(),
            "ema": None if parts.ema is None else parts.ema.module.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "schedule": {
                "name": record.options.schedule,
                "total_steps": total_steps,
                "best": self.best,
                "best_of": self.best_of,
                "epoch_loss": self.epoch_loss,
                "epoch_count": self.epoch_count,
                "recent": self.recent,
                "warned": self.warned,
                "seconds": self.seconds,
            },
            "rng": {
                "step": parts.step.state_dict(),
                **ranks[0],
                "others": ranks[1:],
            },
            "epoch": self.epoch,
            "step": self.step,
            "config": record.as_json(),
        }


def own_state(parts: Parts) -> dict[str, Any]:
    """Return the state that differs between ranks: torch's generators and, except on rank 0, the buffers."""
    cuda = [torch.cuda.get_rng_state(parts.device)] if parts.device.type == "cuda" else []
    buffers = {} if parts.world.is_main else {"buffers": [buffer.cpu() for buffer in parts.model.buffers()]}
    return {"torch": torch.get_rng_state(), "cuda": cuda, **buffers}


def restored(opened: Opened, parts: Parts, total_steps: int, folder: Path) -> RunState:
    """Put a checkpoint's content into the parts, and return the run's state.

    Raises:
        UserError: the checkpoint belongs to another model or data set, or to a run of more or fewer processes.
    """
    content, world = opened.content, parts.world
    rng, kept = content.rng, content.schedule
    if len(rng.others) + 1 != world.size:
        raise UserError(
            f"{folder} was started with {len(rng.others) + 1} processes and cannot be resumed with {world.size}, "
            "which would draw other noise"
        )
    if kept.total_steps != total_steps:
        raise UserError(
            f"the data set has changed since {folder} was started: {kept.total_steps} updates were planned, now "
            f"{total_steps}"
        )
    own = rng if world.is_main else rng.others[world.rank - 1]
    try:
        if not content.step == rng.step["step"] <= total_steps or content.step // parts.loader.steps != content.epoch:
            raise ValueError(f"{content.step} updates do not end in epoch {content.epoch}")
        parts.model.load_state_dict(content.model)
        if parts.ema is not None:
            parts.ema.module.load_state_dict(content.ema or {})
        _restore_optimizer(parts.optimizer, content.optimizer)
        parts.step.load_state_dict(rng.step)
        torch.set_rng_state(own.torch)
        if parts.device.type == "cuda" and own.cuda:
            torch.cuda.set_rng_state(own.cuda[0], parts.device)
        if not world.is_main:
            for buffer, value in zip(parts.model.buffers(), own.buffers or [], strict=True):
                buffer.copy_(value)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises all kinds of exceptions for what it cannot load
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the checkpoint in {folder} does not fit ({why})") from error
    return RunState(
        epoch=content.epoch,
        step=content.step,
        best=kept.best,
        best_of=kept.best_of,
        warned=kept.warned,
        seconds=kept.seconds,
        epoch_loss=kept.epoch_loss,
        epoch_count=kept.epoch_count,
        recent=list(kept.recent),
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the momentum. The settings stay those that the run's options gave; the learning rate is set before a step.

    Raises:
        ValueError: the state belongs to other parameters. torch itself compares only their number.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, settings, strict=True):
        group.update(before)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = [{name: type(value) for name, value in optimizer.state.get(one, {}).items()} for one in parameters]
    kinds = [kind for kind in kinds if kind]  # a weight that has had no gradient has no momentum
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("the weights have different kinds of momentum")
    for parameter in parameters:
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and (value.shape, value.layout) != (parameter.shape, torch.strided):
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a weight of {tuple(parameter.shape)}")
