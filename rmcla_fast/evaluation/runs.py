"""A run folder as something to evaluate: its options, its model on a device, and the test images of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.data import DataSplits
from rmcla_fast.data.splits import require_classes
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.errors import UserError


@dataclass(frozen=True)
class Run:
    """What `rmcla train` left, ready to be attacked."""

    folder: Path
    checkpoint: Path
    config: dict[str, Any]
    model: nn.Module
    images: Tensor  # (N, C, H, W) uint8, on the CPU
    labels: Tensor  # (N,) int64
    num_classes: int
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

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
        """ "small-cnn on digits, r-mc-la"."""
        return f"{self.config['model']} on {self.data}, {self.recipe}"


_DATA: dict[tuple[str, str | None, bool], DataSplits] = {}


def load_data(name: str, data_dir: str | None, skip_unreadable: bool = False) -> DataSplits:
    """The data set, once for all the runs of one command."""
    from rmcla_fast import data

    key = (name, data_dir, skip_unreadable)
    if key not in _DATA:
        _DATA.clear()  # one at a time: they may be large
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
    from rmcla_fast.training.checkpoint import BEST, LAST, load
    from rmcla_fast.training.config import DEFAULTS
    from rmcla_fast.training.setup import choose_device

    folder = Path(folder)
    config = read_config(folder)
    if images is not None and images < 1:
        raise UserError(f"--images must be at least 1; got {images}")
    if threads := DEFAULTS.get(config["data"], {}).get("threads"):  # as trained: small images are not worth sharing
        torch.set_num_threads(threads)
    where = choose_device(device)
    network = load(folder, which=which, model=model).to(where)
    where_data = data_dir if data_dir is not None else config.get("data_dir")
    splits = load_data(config["data"], where_data, bool(config.get("skip_unreadable")))
    require_classes(splits, config, folder)
    test = splits.test
    if images is not None and images < len(test):
        test = test.take(torch.arange(images) * len(test) // images)  # a folder's first images are all of one class
    return Run(
        folder,
        folder / (LAST if which == "last" else BEST),
        config,
        network,
        test.images,
        test.labels,
        splits.num_classes,
        tuple(splits.classes),
    )
