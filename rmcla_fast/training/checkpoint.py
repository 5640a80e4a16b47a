"""Checkpoints that survive a kill at any instant, and the trained model in a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.files import replacing
from rmcla_fast.training.build import create_model

LAST, BEST = "checkpoint.pt", "best.pt"
KEYS = ("model", "ema", "optimizer", "schedule", "rng", "epoch", "step", "config")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` so that `path` holds either the whole old or the whole new content if the process is killed.

    Raises:
        RunFailed: the disk is full or the folder cannot be written; the old content is kept.
    """
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__  # the system's error, below torch's
        why = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        before = "the previous checkpoint is kept" if path.exists() else "there is no earlier one"
        raise RunFailed(f"{path} could not be written ({why}); {before}") from error


def read(path: Path) -> dict[str, Any]:
    """Return the checkpoint in `path`, on the CPU. No code that it might hold is run.

    Raises:
        UserError: the file does not exist, is truncated, or is not a checkpoint of this library.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train first, or name another run folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged file, zip, pickle and torch raise different ones
        raise UserError(
            f"{path} is truncated or was not written by rmcla_fast, and cannot be read as a checkpoint"
        ) from error
    missing = [key for key in KEYS if key not in state] if isinstance(state, dict) else list(KEYS)
    if missing:
        raise UserError(f"{path} is not a checkpoint of rmcla_fast: it has no {', '.join(map(repr, missing))}")
    return state


def load(run_folder: str | Path, which: str = "last", model: str | nn.Module | None = None) -> nn.Module:
    """Return the trained model of a run, in evaluation mode. It maps images in [0, 1] to logits.

    Its weights are the moving average (EMA), if the run kept one.

    Args:
        run_folder: the folder that `rmcla train` wrote.
        which: the "last" checkpoint, or the "best" one, with the highest PGD accuracy on the held-out images.
        model: needed only if the run's model came from a factory of your own, since a checkpoint never decides what
            code is imported. It is "package.module:factory" again, or a module whose weights are replaced.

    Raises:
        UserError: one sentence: a checkpoint that does not exist, is truncated or was written by another program, a
            factory that was not named again, or weights that do not fit the model.
    """
    if which not in ("last", "best"):
        raise UserError(f"which must be 'last' or 'best'; got {which!r}")
    path = Path(os.path.expanduser(run_folder)) / (LAST if which == "last" else BEST)
    state = read(path)
    network = model if isinstance(model, nn.Module) else _rebuild(path, state["config"], model)
    weights = state["ema"] if state["ema"] is not None else state["model"]
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"the weights in {path} do not fit the model {_name(state['config'], model)}") from error
    return network.eval()


def _rebuild(path: Path, config: Mapping[str, Any], named: str | None) -> nn.Module:
    recorded = config.get("model")
    if not isinstance(recorded, str) or not isinstance(config.get("num_classes"), int):
        raise UserError(f"{path} does not say which model its weights belong to")
    if ":" in recorded and named is None:
        raise UserError(
            f"the weights in {path} belong to the factory {recorded}; name it again (model=, --model) to import it"
        )
    return create_model(named or recorded, config["num_classes"], config["channels"])


def _name(config: Mapping[str, Any], model: str | nn.Module | None) -> str:
    if isinstance(model, nn.Module):
        return type(model).__name__
    return model or str(config.get("model"))
