"""The state of a run, and the checkpoint that resumes it: everything that the rest of the run depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rmcla_fast.errors import UserError
from rmcla_fast.training.build import Parts


@dataclass
class RunState:
    """The progress of a run: finished epochs and updates, the best accuracy, time and losses."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # updates that are done
    best: float = -math.inf  # the highest PGD accuracy so far, in %
    warned: bool = False  # whether the last measurement showed catastrophic overfitting, with a warning
    seconds: float = 0.0  # of training
    epoch_loss: float = 0.0  # the sum over this epoch's updates so far
    epoch_count: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last logged step

    def state(
        self, parts: Parts, total_steps: int, described: dict[str, Any], ranks: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the checkpoint. `described` is the content of config.json, and `ranks` every rank's `own_state`."""
        return {
            "model": parts.model.state_dict(),
            "ema": None if parts.ema is None else parts.ema.module.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "schedule": {
                "name": described["schedule"],
                "total_steps": total_steps,
                "best": self.best,
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
            "config": described,
        }


def own_state(parts: Parts) -> dict[str, Any]:
    """Return the state that differs between ranks: torch's generators and, except on rank 0, the buffers."""
    cuda = [torch.cuda.get_rng_state(parts.device)] if parts.device.type == "cuda" else []
    buffers = {} if parts.world.is_main else {"buffers": [buffer.cpu() for buffer in parts.model.buffers()]}
    return {"torch": torch.get_rng_state(), "cuda": cuda, **buffers}


def restored(state: dict[str, Any], parts: Parts, total_steps: int, folder: Path) -> RunState:
    """Put a checkpoint's content into the parts, and return the run's state.

    Raises:
        UserError: the checkpoint belongs to another model or data set, or to a run of more or fewer processes.
    """
    rng, world = state["rng"], parts.world
    others = rng.get("others", [])
    if len(others) + 1 != world.size:
        raise UserError(
            f"{folder} was started with {len(others) + 1} processes and cannot be resumed with {world.size}, "
            "which would draw other noise"
        )
    own = rng if world.is_main else others[world.rank - 1]
    try:
        parts.model.load_state_dict(state["model"])
        if parts.ema is not None:
            parts.ema.module.load_state_dict(state["ema"])
        parts.optimizer.load_state_dict(state["optimizer"])
        for group in parts.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], device=parts.device)
        parts.step.load_state_dict(rng["step"])
        torch.set_rng_state(own["torch"])
        if parts.device.type == "cuda" and own["cuda"]:
            torch.cuda.set_rng_state(own["cuda"][0], parts.device)
        if not world.is_main:
            for buffer, value in zip(parts.model.buffers(), own["buffers"], strict=True):
                buffer.copy_(value)
        kept = state["schedule"]
        planned = kept["total_steps"]
        at = RunState(
            epoch=state["epoch"],
            step=state["step"],
            best=kept["best"],
            warned=kept["warned"],
            seconds=kept["seconds"],
            epoch_loss=kept["epoch_loss"],
            epoch_count=kept["epoch_count"],
            recent=list(kept["recent"]),
        )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the checkpoint in {folder} does not fit ({why})") from error
    if planned != total_steps:
        raise UserError(
            f"the data set has changed since {folder} was started: {planned} updates were planned, now {total_steps}"
        )
    return at
