"""A run folder, opened for evaluation: its options, its model on a device, and its test images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from rmcla_fast import data
from rmcla_fast.data import DataSplits
from rmcla_fast.data.splits import ImageSet, require_classes
from rmcla_fast.errors import UserError
from rmcla_fast.models import is_factory
from rmcla_fast.models.libraries import settled
from rmcla_fast.text import shell_word
from rmcla_fast.training import checkpoint
from rmcla_fast.training.build import choose_device
from rmcla_fast.training.config import DEFAULTS
from rmcla_fast.training.record import CONFIG, Facts, RunRecord


@dataclass(frozen=True)
class Run:
    """A trained model with the test images that it is evaluated on.

    Attributes:
        folder: the run folder that `rmcla train` wrote.
        which: the checkpoint that the weights come from, "last" or "best".
        epoch: the number of epochs after which these weights were saved.
        best_of: whether the best checkpoint is the "average" of the weights or the "weights" themselves.
        record: the options of the run, from its checkpoint.
        model: maps images in [0, 1] to logits.
        images: the test images, uint8 (N, C, H, W) on the CPU.
        labels: their classes, int64 (N,).
        num_classes: the number of classes.
        classes: the names of the classes.
        identity: everything that the model's answers depend on: the SHA-256 of the checkpoint, the SHA-256 of the
            images and labels, and the name of the network.
    """

    folder: Path
    which: str
    epoch: int
    best_of: str
    record: RunRecord
    model: nn.Module
    images: Tensor
    labels: Tensor
    num_classes: int
    classes: tuple[str, ...]
    identity: dict[str, str]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def recipe(self) -> str:
        return self.record.options.recipe

    @property
    def data(self) -> str:
        return self.record.options.data

    @property
    def network(self) -> str:
        """Return the name of the network that the run trained."""
        return self.record.options.model

    @property
    def epsilon(self) -> float:
        return self.record.options.epsilon

    @property
    def description(self) -> str:
        """Describe the run in one line, such as "small-cnn on digits, r-mc-la"; `early` is added to it."""
        return f"{self.network} on {self.data}, {self.recipe}{self.early}"

    @property
    def early(self) -> str:
        """Return which checkpoint this is, such as " (best, the average after epoch 3 of 30)" or " (epoch 3 of 30)".

        Return "" for the last checkpoint of a run that is finished.
        """
        options = self.record.options
        when = f"epoch {self.epoch} of {options.epochs}"
        if self.which == "best":
            return f" (best, {f'the {self.best_of} after {when}' if options.ema else when})"
        return f" ({when})" if self.epoch < options.epochs else ""

    @property
    def chance(self) -> float:
        """Return the accuracy in % of a model that always answers the most frequent class."""
        return 100 * int(torch.bincount(self.labels).max()) / len(self.labels)


@lru_cache(maxsize=1)  # the runs of one command share their data, and two data sets may not fit in memory
def load_data(name: str, data_dir: str | None, skip_unreadable: bool = False) -> DataSplits:
    """Load a data set, and keep the last one that was loaded in memory."""
    return data.load(name, data_dir=data_dir, skip_unreadable=skip_unreadable)


@lru_cache(maxsize=1)
def _test_images(name: str, data_dir: str | None, skip_unreadable: bool, count: int | None) -> tuple[ImageSet, str]:
    """Return `count` evenly spaced test images (None: all of them) and the SHA-256 of these images and labels."""
    test = load_data(name, data_dir, skip_unreadable).test
    if count is not None and count < len(test):
        test = test.take(evenly_spaced(len(test), count))
    digest = hashlib.sha256(repr(tuple(test.images.shape)).encode())
    for part in (*test.images.split(1024), test.labels):  # in pieces, because images may be memory-mapped
        digest.update(part.contiguous().numpy())
    return test, digest.hexdigest()


def open_run(
    folder: str | Path,
    *,
    data_dir: str | None = None,
    model: str | Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
    images: int | None = None,
) -> Run:
    """Load a run's model and test images.

    Args:
        folder: the run folder that `rmcla train` wrote.
        data_dir: where the data set is; None takes the place that the run was trained with.
        model: "package.module:factory", needed if the run was trained with such a model; or several of them, of which
            `own_factory` takes the run's.
        which: the checkpoint to load, "last" or "best".
        device: where the model is put; None takes a GPU if there is one.
        images: the number of test images, evenly spaced; None takes all of them.

    Raises:
        UserError: the run, its checkpoint, its data set or the device does not exist, or the weights do not fit the
            network, or the data set does not fit the run.
    """
    folder = Path(folder)
    if images is not None and images < 1:
        raise UserError(f"--images must be at least 1; got {images}")
    opened = _open_checkpoint(folder, which)
    options, facts = opened.record.options, opened.record.facts
    if threads := DEFAULTS[options.data]["threads"]:  # the same number as in training
        torch.set_num_threads(threads)
    where = choose_device(device)
    named = model if model is None or isinstance(model, str) else own_factory(options.model, model)
    network = checkpoint.network_of(opened, named)
    network = network.to(where)
    if where.type == "cuda":  # cuDNN's convolutions on tensor cores are fastest in this layout
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = (options.data, data_dir or options.data_dir, options.skip_unreadable)
    try:
        splits = load_data(*key)
    except UserError as error:
        if data_dir is not None or key[1] is None:
            raise
        raise UserError(
            f"{error}; {folder} was trained with the data there, name another place with --data-dir"
        ) from error
    require_classes(splits, facts.classes, facts.num_classes, folder)
    _require_shape(splits, facts, folder)
    test, images_sha256 = _test_images(*key, images)
    identity = {
        "checkpoint_sha256": opened.sha256,
        "images_sha256": images_sha256,
        "network": named or options.model,
    }
    return Run(
        folder,
        which,
        opened.content.epoch,
        opened.content.schedule.best_of,
        opened.record,
        network,
        test.images,
        test.labels,
        splits.num_classes,
        tuple(splits.classes),
        identity,
    )


def own_factory(recorded: str, named: Sequence[str]) -> str | None:
    """Return the model among `named` for a run that recorded this model: the same one, or else the only one.

    Return None if the run's model is neither from a factory nor in a folder, which may have moved, or if several are
    named and none of them is the run's.
    """
    named = [settled(name) for name in named]
    if not named or not (is_factory(recorded) or recorded.startswith("hf:")):
        return None
    return recorded if recorded in named else named[0] if len(named) == 1 else None


def evenly_spaced(total: int, count: int = 256) -> Tensor:
    """Return min(count, total) row numbers, int64, evenly spaced among `total` rows.

    The first rows alone would not do: in an image folder they all belong to one class.
    """
    count = min(count, total)
    return torch.arange(count) * total // count


def _open_checkpoint(folder: Path, which: str) -> checkpoint.Opened:
    """Read a checkpoint of a run.

    Raises:
        UserError: the folder or the checkpoint does not exist, or the checkpoint cannot be read.
    """
    path = checkpoint.checkpoint_path(folder, which)
    if not folder.is_dir():
        raise UserError(
            f"there is no run folder {folder}; train one first with: "
            f"rmcla train --data digits --out {shell_word(folder)}"
        )
    if not path.exists() and not (folder / CONFIG).exists():
        raise UserError(f"{folder} is not a run folder: it has no {path.name}")
    return checkpoint.open_file(path)


def _require_shape(splits: DataSplits, trained: Facts, run: Path) -> None:
    """Raise a UserError if the test images have another shape than the images that the run was trained on."""
    shape = (trained.channels, *trained.image_size)
    if shape != splits.test.shape:
        before, now = ("x".join(map(str, size)) for size in (shape, splits.test.shape))
        raise UserError(f"{run} was trained on images of {before}; the test images are {now}")
