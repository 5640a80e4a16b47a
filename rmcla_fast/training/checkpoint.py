"""Checkpoints that survive a kill at any instant, and the trained model in a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast import sealed
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.files import replacing
from rmcla_fast.models import is_factory
from rmcla_fast.options import AT_LEAST_1, NOT_NEGATIVE, fact, one_of
from rmcla_fast.schema import Mismatch, read_as
from rmcla_fast.training.build import create_model
from rmcla_fast.training.monitor import BEST_OF
from rmcla_fast.training.record import RunRecord, parse_record

LAST, BEST = "checkpoint.pt", "best.pt"


@dataclass(frozen=True)
class Progress:
    """The entry "schedule" of a checkpoint: the learning rate's schedule, and the sums and times of the run so far."""

    name: str
    best: float
    epoch_loss: float
    recent: list[float]
    warned: bool
    total_steps: int = fact(AT_LEAST_1)
    epoch_count: int = fact(NOT_NEGATIVE)
    seconds: float = fact(NOT_NEGATIVE)
    best_of: str = fact(one_of(BEST_OF), BEST_OF[0])  # which of the two was best; older versions measured one


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What differs between the ranks of a run: torch's generators and, except on rank 0, the buffers."""

    torch: Tensor
    cuda: list[Tensor]
    buffers: list[Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class RandomState(RankState):
    """The entry "rng" of a checkpoint: the state of the update, of rank 0, and of the other ranks."""

    step: dict[str, Any]
    others: list[RankState]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, whose tensors are on the CPU. The file is a dictionary with these entries."""

    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: Progress
    rng: RandomState
    config: dict[str, Any]  # the content of config.json
    epoch: int = fact(NOT_NEGATIVE)
    step: int = fact(NOT_NEGATIVE)


@dataclass(frozen=True)
class Opened:
    """A checkpoint file that was read: its content, the record of its run, and the SHA-256 of the file."""

    path: Path
    content: Checkpoint
    record: RunRecord
    sha256: str


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` so that `path` holds either the whole old or the whole new content if the process is killed.

    Raises:
        RunFailed: the disk is full or the folder cannot be written; the old content is kept.
    """
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
            sealed.seal(file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__  # the system's error, below torch's
        why = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        before = (
            "the previous checkpoint is kept, and --resume goes on from it"
            if path.exists()
            else "there is no earlier one, and --resume begins again"
        )
        raise RunFailed(f"{path} could not be written ({why}); {before}") from error


def read(path: Path) -> Checkpoint:
    """Return the content of a checkpoint file; see `open_file`."""
    return open_file(path).content


def open_file(path: Path) -> Opened:
    """Read a checkpoint and check its digest and its content. No code that it might hold is run.

    Raises:
        UserError: the file does not exist, is damaged, or is not a checkpoint of this library.
    """
    if not path.is_file():
        other = _other(path)
        instead = f"take {other.name} with --which {'last' if other.name == LAST else 'best'}"
        raise UserError(
            f"there is no checkpoint {path}; "
            f"{instead if other.is_file() else 'train first, or name another run folder'}"
        )
    try:
        with path.open("rb") as file:
            _, sha256 = sealed.check_seal(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except sealed.Damaged as error:
        raise UserError(f"{path} {error}; {_way_out(path)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # for content of another program, zip, pickle and torch raise different ones
        raise UserError(f"{path} was not written by rmcla_fast and cannot be read as a checkpoint") from error
    try:
        content = read_as(Checkpoint, state)
        return Opened(path, content, parse_record(content.config), sha256)
    except Mismatch as error:
        raise UserError(f"{path} is not a checkpoint of rmcla_fast ({error}); {_way_out(path)}") from error


def _way_out(path: Path) -> str:
    """Return what the user can do if the checkpoint cannot be used."""
    other = _other(path)
    if not _is_whole(other):
        return "restore it from a copy, or start the run again in another folder"
    if path.name == LAST:
        return f"put a copy of {other}, which may be older, in its place to go on from there"
    return "remove it; --which last still works"


def _other(path: Path) -> Path:
    """Return the path of the other one of a run's two checkpoints."""
    return path.with_name(BEST if path.name == LAST else LAST)


def _is_whole(path: Path) -> bool:
    """Return whether the file exists and has the content that was written."""
    with suppress(OSError, sealed.Damaged):
        if path.is_file():
            with path.open("rb") as file:
                sealed.check_seal(file)
            return True
    return False


def load(run_folder: str | Path, which: str = "last", model: str | nn.Module | None = None) -> nn.Module:
    """Return the trained model of a run, in evaluation mode. It maps images in [0, 1] to logits.

    Its weights are the moving average (EMA), if the run kept one. "best" has either the average or the weights
    themselves, whichever were more accurate under PGD.

    Args:
        run_folder: the folder that `rmcla train` wrote.
        which: the "last" checkpoint, or the "best" one, with the highest PGD accuracy on the held-out images.
        model: needed only if the run's model came from a factory of your own, since a checkpoint never decides what
            code is imported. It is "package.module:factory" again, or a module whose weights are replaced; or
            "hf:FOLDER", if the folder of the run's model has moved.

    Raises:
        UserError: one sentence: a checkpoint that does not exist, is damaged or was written by another program, a
            factory that was not named again, or weights that do not fit the model.
    """
    return network_of(open_file(checkpoint_path(run_folder, which)), model)


def checkpoint_path(run_folder: str | Path, which: str) -> Path:
    """Return the path of the "last" or the "best" checkpoint of a run; raise a UserError for another word."""
    if which not in ("last", "best"):
        raise UserError(f"which must be 'last' or 'best'; got {which!r}")
    return Path(os.path.expanduser(run_folder)) / (LAST if which == "last" else BEST)


def weights_of(opened: Opened) -> dict[str, Any]:
    """Return the state dict of the trained model in a checkpoint, which is the average if the run kept one."""
    content = opened.content
    weights = opened.path.name == BEST and content.schedule.best_of == "weights"
    return content.model if content.ema is None or weights else content.ema


def network_of(opened: Opened, model: str | nn.Module | None = None) -> nn.Module:
    """Return the trained model in a checkpoint; see `load`."""
    recorded = opened.record.options.model
    if isinstance(model, nn.Module):
        network, name = model, type(model).__name__
    elif is_factory(recorded) and model is None:
        raise UserError(
            f"the weights in {opened.path} belong to the factory {recorded}; name it again (model=, --model) to "
            "import it"
        )
    else:
        name, facts = model or recorded, opened.record.facts
        network = create_model(name, facts.num_classes, (facts.channels, *facts.image_size))
    try:
        network.load_state_dict(weights_of(opened))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises all kinds of exceptions for what it cannot load
        raise UserError(f"the weights in {opened.path} do not fit the model {name}") from error
    return network.eval()
