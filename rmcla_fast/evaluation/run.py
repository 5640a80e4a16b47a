"""A run folder as something to evaluate: its options, its model on a device, and the test images of its data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.data import DataSplits
from rmcla_fast.data.splits import ImageSet, require_classes
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.errors import UserError


@dataclass(frozen=True)
class Run:
    """What `rmcla train` left, ready to be attacked."""

    folder: Path
    which: str
    epoch: int  # that the weights are of
    config: dict[str, Any]
    model: nn.Module
    images: Tensor  # (N, C, H, W) uint8, on the CPU
    labels: Tensor  # (N,) int64
    num_classes: int
    classes: tuple[str, ...]
    identity: dict[str, str]  # what the answers depend on: SHA-256 of the checkpoint and of the images, the network

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
        """ "small-cnn on digits, r-mc-la", and the epoch where that is not the last."""
        return f"{self.config['model']} on {self.data}, {self.recipe}{self.early}"

    @property
    def early(self) -> str:
        """ " (epoch 3 of 30)", or nothing where the weights are those of the last epoch."""
        epochs = int(self.config.get("epochs") or 0)
        return f" (epoch {self.epoch} of {epochs})" if self.epoch < epochs else ""

    @property
    def chance(self) -> float:
        """The accuracy in % of a model that always answers the most frequent class."""
        return 100 * int(torch.bincount(self.labels).max()) / len(self.labels)


_DATA: dict[tuple[str, str | None, bool], DataSplits] = {}
_CHECKSUMS: dict[tuple[str, str | None, bool, int | None], str] = {}


def load_data(name: str, data_dir: str | None, skip_unreadable: bool = False) -> DataSplits:
    """The data set, once for all the runs of one command."""
    from rmcla_fast import data

    key = (name, data_dir, skip_unreadable)
    if key not in _DATA:
        _DATA.clear()  # one at a time: they may be large
        _CHECKSUMS.clear()
        _DATA[key] = data.load(name, data_dir=data_dir, skip_unreadable=skip_unreadable)
    return _DATA[key]


def read_config(folder: Path) -> dict[str, Any]:
    """The run's options; UserError, in one sentence, where there is no run."""
    from rmcla_fast.training.config import read_recorded

    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; train one first with: rmcla train --out {folder}")
    path = folder / "config.json"
    if not path.exists():
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
    """The run in `folder`, its model on `device` (a GPU where there is one), its test images or `images` of them.

    Raises:
        UserError: no run, no checkpoint, weights that do not fit, a data set that is not there, a device that is not.
    """
    from rmcla_fast.training.build import choose_device
    from rmcla_fast.training.config import DEFAULTS

    folder = Path(folder)
    config = read_config(folder)
    if images is not None and images < 1:
        raise UserError(f"--images must be at least 1; got {images}")
    if threads := DEFAULTS.get(config["data"], {}).get("threads"):  # as trained: small images are not worth sharing
        torch.set_num_threads(threads)
    where = choose_device(device)
    network, epoch, checkpoint = _load(folder, which, model)
    network = network.to(where)
    if where.type == "cuda":  # cuDNN's tensor-core convolutions want this layout
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = (config["data"], data_dir or config.get("data_dir"), bool(config.get("skip_unreadable")))
    try:
        splits = load_data(*key)
    except UserError as error:
        if data_dir is not None or key[1] is None:
            raise
        raise UserError(f"{error}; that is where {folder} was trained, name another place with --data-dir") from error
    require_classes(splits, config, folder)
    _require_shape(splits, config, folder)
    test = splits.test
    if images is not None and images < len(test):
        test = test.take(spaced(len(test), images))
    share = (*key, images)
    if share not in _CHECKSUMS:
        _CHECKSUMS[share] = _checksum_of_images(test)
    identity = {
        "checkpoint_sha256": checkpoint,
        "images_sha256": _CHECKSUMS[share],
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


def spaced(total: int, count: int = 256) -> Tensor:
    """(min(count, total),) int64: rows evenly spaced among `total`, as a folder's first images are all of one class."""
    count = min(count, total)
    return torch.arange(count) * total // count


def _load(folder: Path, which: str, model: str | None) -> tuple[nn.Module, int, str]:
    """(network, epoch, SHA-256), all of one checkpoint, though a training run may be replacing it meanwhile."""
    from rmcla_fast.training.checkpoint import BEST, LAST, load, read

    path = folder / (BEST if which == "best" else LAST)
    while True:
        before = checksum(path) if path.is_file() else ""  # `load` says what is missing
        network, epoch = load(folder, which=which, model=model), int(read(path)["epoch"])
        if checksum(path) == before:
            return network, epoch, before


def _require_shape(splits: DataSplits, trained: dict[str, Any], run: Path) -> None:
    """UserError where the test images are not of the shape that the run was trained on."""
    shape = (trained.get("channels"), *(trained.get("image_size") or ()))
    if None not in shape and shape != splits.test.shape:
        before, now = ("x".join(map(str, size)) for size in (shape, splits.test.shape))
        raise UserError(f"{run} was trained on images of {before}; the test images are {now}")


def checksum(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _checksum_of_images(test: ImageSet) -> str:
    digest = hashlib.sha256(repr(tuple(test.images.shape)).encode())
    for part in (*test.images.split(1024), test.labels):  # in pieces: images may be memory-mapped
        digest.update(part.contiguous().numpy())
    return digest.hexdigest()
