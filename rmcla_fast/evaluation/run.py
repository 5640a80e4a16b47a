"""A run folder, opened for evaluation: its options, its model on a device, and its test images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast import data
from rmcla_fast.data import DataSplits
from rmcla_fast.data.splits import ImageSet, require_classes
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.training import checkpoint
from rmcla_fast.training.build import choose_device
from rmcla_fast.training.config import DEFAULTS, read_recorded


@dataclass(frozen=True)
class Run:
    """A trained model with the test images that it is evaluated on.

    Attributes:
        folder: the run folder that `rmcla train` wrote.
        which: the checkpoint that the weights come from, "last" or "best".
        epoch: the number of epochs after which these weights were saved.
        config: the options of the run, from its config.json.
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
    config: dict[str, Any]
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
        return str(self.config["recipe"])

    @property
    def data(self) -> str:
        return str(self.config["data"])

    @property
    def epsilon(self) -> float:
        return float(self.config["epsilon"])

    @property
    def description(self) -> str:
        """Describe the run in one line, such as "small-cnn on digits, r-mc-la"; `early` is added to it."""
        return f"{self.config['model']} on {self.data}, {self.recipe}{self.early}"

    @property
    def early(self) -> str:
        """Return " (epoch 3 of 30)", or "" if the weights were saved after the last epoch."""
        epochs = int(self.config.get("epochs") or 0)
        return f" (epoch {self.epoch} of {epochs})" if self.epoch < epochs else ""

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


def read_config(folder: Path) -> dict[str, Any]:
    """Read the options of a run.

    Raises:
        UserError: the folder does not exist, or `rmcla train` did not write it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; train one first with: rmcla train --out {folder}")
    path = folder / "config.json"
    if not path.is_file():  # to read a pipe would wait for a writer
        raise UserError(f"{folder} is not a run folder: it has no config.json")
    config = read_recorded(path)
    missing = [name for name in ("data", "model", "recipe", "epsilon") if config.get(name) is None]
    if missing:
        raise UserError(f"{path} does not say {missing[0]!r}; it was not written by rmcla train")
    return {**config, "epsilon": parse_epsilon(config["epsilon"])}


def open_run(
    folder: str | Path,
    *,
    data_dir: str | None = None,
    model: str | None = None,
    which: str = "last",
    device: str | None = None,
    images: int | None = None,
) -> Run:
    """Load a run's model and test images.

    Args:
        folder: the run folder that `rmcla train` wrote.
        data_dir: where the data set is; None takes the place that the run was trained with.
        model: "package.module:factory", needed if the run was trained with such a model.
        which: the checkpoint to load, "last" or "best".
        device: where the model is put; None takes a GPU if there is one.
        images: the number of test images, evenly spaced; None takes all of them.

    Raises:
        UserError: the run, its checkpoint, its data set or the device does not exist, or the weights do not fit the
            network, or the data set does not fit the run.
    """
    folder = Path(folder)
    config = read_config(folder)
    if images is not None and images < 1:
        raise UserError(f"--images must be at least 1; got {images}")
    if threads := DEFAULTS.get(config["data"], {}).get("threads"):  # the same number as in training
        torch.set_num_threads(threads)
    where = choose_device(device)
    network, epoch, checkpoint_sha256 = _load_checkpoint(folder, which, model)
    network = network.to(where)
    if where.type == "cuda":  # cuDNN's convolutions on tensor cores are fastest in this layout
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = (config["data"], data_dir or config.get("data_dir"), bool(config.get("skip_unreadable")))
    try:
        splits = load_data(*key)
    except UserError as error:
        if data_dir is not None or key[1] is None:
            raise
        raise UserError(
            f"{error}; {folder} was trained with the data there, name another place with --data-dir"
        ) from error
    require_classes(splits, config, folder)
    _require_shape(splits, config, folder)
    test, images_sha256 = _test_images(*key, images)
    identity = {
        "checkpoint_sha256": checkpoint_sha256,
        "images_sha256": images_sha256,
        "network": model or str(config["model"]),
    }
    return Run(
        folder,
        which,
        epoch,
        config,
        network,
        test.images,
        test.labels,
        splits.num_classes,
        tuple(splits.classes),
        identity,
    )


def evenly_spaced(total: int, count: int = 256) -> Tensor:
    """Return min(count, total) row numbers, int64, evenly spaced among `total` rows.

    The first rows alone would not do: in an image folder they all belong to one class.
    """
    count = min(count, total)
    return torch.arange(count) * total // count


def _load_checkpoint(folder: Path, which: str, model: str | None) -> tuple[nn.Module, int, str]:
    """Return the network, its epoch and the SHA-256 of its checkpoint file.

    A training run may replace the file in the meantime. Then everything is read again, until all three belong together.
    """
    path = folder / (checkpoint.BEST if which == "best" else checkpoint.LAST)
    while True:
        before = checksum(path) if path.is_file() else ""  # `checkpoint.load` reports a missing file
        network = checkpoint.load(folder, which=which, model=model)
        epoch = int(checkpoint.read(path)["epoch"])
        if checksum(path) == before:
            return network, epoch, before


def _require_shape(splits: DataSplits, trained: dict[str, Any], run: Path) -> None:
    """Raise a UserError if the test images have another shape than the images that the run was trained on."""
    shape = (trained.get("channels"), *(trained.get("image_size") or ()))
    if None not in shape and shape != splits.test.shape:
        before, now = ("x".join(map(str, size)) for size in (shape, splits.test.shape))
        raise UserError(f"{run} was trained on images of {before}; the test images are {now}")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
