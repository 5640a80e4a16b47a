"""What a data set is once it is loaded: images and labels in memory, and the checks that every data set passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rmcla_fast.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W) uint8, in memory or memory-mapped, and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, index: Tensor) -> ImageSet:
        """The images at `index` (int64), copied."""
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True)
class StreamedSet:
    """Images that stay on disk, for a data set that memory cannot hold: their files and labels (N,) int64."""

    paths: list[Path]
    labels: Tensor
    shape: tuple[int, int, int]  # (C, H, W) of an image once it is decoded

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> StreamedSet:
        """The files at `index` (int64)."""
        return StreamedSet([self.paths[row] for row in index.tolist()], self.labels[index], self.shape)


Set = TypeVar("Set", ImageSet, StreamedSet)


@dataclass(frozen=True)
class DataSplits:
    """A data set's two splits; labels lie in [0, num_classes). `classes` are the names, where the data set has any."""

    train: ImageSet | StreamedSet
    test: ImageSet
    num_classes: int
    classes: tuple[str, ...] = field(default=())


def check(name: str, splits: DataSplits) -> DataSplits:
    """The same splits, or a UserError: an empty split, one class only, a label that is no class, a missing class."""
    if splits.num_classes < 2:
        raise UserError(f"{name} has {splits.num_classes} class; a classifier needs at least 2")
    for split, data in (("train", splits.train), ("test", splits.test)):
        if len(data) == 0:
            raise UserError(f"{name} has no {split} images")
        if isinstance(data, ImageSet) and data.images.shape[0] != len(data):
            raise UserError(f"{name} has {data.images.shape[0]} {split} images and {len(data)} labels")
        wrong = ((data.labels < 0) | (data.labels >= splits.num_classes)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            label = int(data.labels[row])
            raise UserError(
                f"{name}: {split} image {row} has label {label}; labels must lie in [0, {splits.num_classes})"
            )
        counts = torch.bincount(data.labels, minlength=splits.num_classes)
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            named = ", ".join(splits.classes[k] if splits.classes else str(k) for k in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(f"{name} has no {split} image of class {named}{more}")
    return splits


def require_classes(splits: DataSplits, trained: Mapping[str, Any], run: Path) -> None:
    """UserError where class k of the data set is not class k of the run, whose config.json is `trained`.

    A folder that is added to or renamed moves every class after it, and the run would learn or be asked wrong labels.
    """
    names = trained.get("classes", splits.classes)
    for k, (before, now) in enumerate(zip_longest(names, splits.classes, fillvalue="not there")):
        if before != now:
            raise UserError(f"{run} was trained on other classes: class {k} was {before} and is {now} in the data set")
    if trained.get("num_classes", splits.num_classes) != splits.num_classes:
        raise UserError(
            f"{run} was trained on {trained['num_classes']} classes, and the data set has {splits.num_classes}"
        )


def per_class(data: ImageSet | StreamedSet, count: int, num_classes: int, seed: int) -> Tensor:
    """Indices (num_classes * count,) of `count` images of each class, drawn with `seed`, in the data set's order.

    Raises:
        UserError: a class has fewer images than `count`, or `count` is not positive.
    """
    if count < 1:
        raise UserError(f"images per class must be at least 1; got {count}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for k in range(num_classes):
        members = (data.labels == k).nonzero().flatten()
        if len(members) < count:
            raise UserError(f"class {k} has {len(members)} images, fewer than the {count} images per class asked for")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def hold_out(data: Set, count: int, num_classes: int, seed: int) -> tuple[Set, Set]:
    """(kept, held out): `count` images, equally many of each class up to a tenth of it, drawn with `seed`.

    Where that is not enough, from each class the same share: a rare class is not held out as a whole.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    rank = torch.empty(len(data), dtype=torch.float64)  # when an image's turn comes: its place among its class
    for k in range(num_classes):
        members = (data.labels[order] == k).nonzero().flatten()
        place = torch.arange(1, len(members) + 1, dtype=torch.float64)
        rank[members] = torch.where(10 * place <= len(members), place, len(data) + place / len(members))
    held = order[rank.argsort(stable=True)[:count]].sort().values
    keep = torch.ones(len(data), dtype=torch.bool)
    keep[held] = False
    return data.take(keep.nonzero().flatten()), data.take(held)
