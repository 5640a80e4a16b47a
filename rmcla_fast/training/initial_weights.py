"""The weights that a run starts from with --init: a file, the model of another run, or those of the model's library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from rmcla_fast import models
from rmcla_fast.data.splits import DataSplits
from rmcla_fast.errors import UserError
from rmcla_fast.models.weights import Misfit, read_content, tensors_of
from rmcla_fast.training import checkpoint
from rmcla_fast.training.config import PRETRAINED, ResolvedConfig

Found = tuple[dict[str, Tensor], str]
"""A state dict, and the SHA-256 of the files that it was read from. Of a checkpoint, it is that of its content."""

CHECKPOINT_KEYS = {"model", "ema", "schedule", "rng"}  # by which a checkpoint of this library is told from other files


def initial_weights(config: ResolvedConfig, splits: DataSplits) -> Found:
    """Return the weights that `config.init` names, for a run on this data set.

    Raises:
        UserError: one sentence: there are none, they cannot be read, or they are not those of `config.init_sha256`.
    """
    if config.init == PRETRAINED:
        weights, sha256 = _pretrained(config.model, splits)
    elif folder := _of_transformers(Path(str(config.init)), config.model):
        weights, sha256 = _pretrained(f"hf:{folder}", splits)
    else:
        weights, sha256 = _at(Path(str(config.init)))
    if config.init_sha256 not in (None, sha256):
        raise UserError(
            f"the weights of --init {config.init} are not those that the run was started with: their SHA-256 is "
            f"{sha256}, and --init-sha256 is {config.init_sha256}"
        )
    return weights, sha256


def _of_transformers(path: Path, model: str) -> Path | None:
    """Return the folder of a model of transformers, if these are its weights and the run's model is one, too.

    The names of tensors in such a file can differ from those in the network, and transformers itself knows them.
    """
    folder = path if path.is_dir() else path.parent
    known = path.is_dir() or path.name in ("model.safetensors", "pytorch_model.bin")
    is_run = any((folder / name).exists() for name in (checkpoint.LAST, checkpoint.BEST))
    return folder if model.startswith("hf:") and known and not is_run and (folder / "config.json").is_file() else None


def _pretrained(model: str, splits: DataSplits) -> Found:
    channels, height, width = splits.train.shape
    try:
        found = models.pretrained(model, splits.num_classes, channels, (height, width))
        return found.tensors, _sha256(found.files)
    except (Misfit, ValueError, ImportError) as error:
        raise UserError(f"--init: {error}") from error


def _at(path: Path) -> Found:
    """Return the weights in a file or in a run folder."""
    if path.is_dir():
        if not any((path / name).exists() for name in (checkpoint.LAST, checkpoint.BEST)):
            raise UserError(
                f"--init {path} is no run folder, since it has no {checkpoint.LAST}; name a file, a run folder, or "
                f"{PRETRAINED}"
            )
        return _of_checkpoint(checkpoint.checkpoint_path(path, "last"))
    if not path.exists():
        raise UserError(f"--init {path} does not exist; name a file, a run folder, or {PRETRAINED}")
    if not path.is_file():
        raise UserError(f"--init {path} is not a file")
    try:
        content = read_content(path)
        if isinstance(content, dict) and content.keys() >= CHECKPOINT_KEYS:
            return _of_checkpoint(path)
        return tensors_of(content), _sha256([path])
    except OSError as error:
        raise UserError(f"--init {path} cannot be read: {error.strerror or error}") from error
    except ImportError as error:
        raise UserError(f"--init {path}: {error}") from error
    except Misfit as error:
        raise UserError(f"--init {path} holds no weights: {error}") from error


def _of_checkpoint(path: Path) -> Found:
    opened = checkpoint.open_file(path)
    tensors = {name: one for name, one in checkpoint.weights_of(opened).items() if isinstance(one, Tensor)}
    return tensors, opened.sha256


def _sha256(files: Iterable[Path]) -> str:
    """Return the digest of the content of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
