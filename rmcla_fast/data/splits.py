"""The types of a loaded data set, the checks that every data set passes, and the choice of subsets."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

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
        """Return (C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, index: Tensor) -> ImageSet:
        """Return a copy of the images and labels at `index` (int64)."""
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ExtraSet(ImageSet):
    """Training images besides those of the data set, memory-mapped. Their bytes are in the order (N, H, W, C).

    `checksum` changes with the arrays of the file, and not with its name, its date or its compression.
    """

    path: Path
    checksum: str


@dataclass(frozen=True)
class StreamedSet:
    """The files and labels (N,) int64 of images that stay on disk, for a data set larger than memory."""

    paths: list[Path]
    labels: Tensor
    shape: tuple[int, int, int]  # (C, H, W) of an image once it is decoded

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> StreamedSet:
        """Return the files and labels at `index` (int64)."""
        return StreamedSet([self.paths[row] for row in index.tolist()], self.labels[index], self.shape)


Set = TypeVar("Set", ImageSet, StreamedSet)


@dataclass(frozen=True)
class DataSplits:
    """The training and test split of a data set.

    Labels lie in [0, num_classes). `classes` are the names of the classes, empty if the data set has none. `extra` are
    images that a run trains on besides those of `train`; see `load_extra`.
    """

    train: ImageSet | StreamedSet
    test: ImageSet
    num_classes: int
    classes: tuple[str, ...] = field(default=())
    extra: ExtraSet | None = None


def check(name: str, splits: DataSplits) -> DataSplits:
    """Return the splits if they are valid.

    Raises:
        UserError: an empty split, fewer than two classes, a label outside [0, num_classes), or a class without images.
    """
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


def require_classes(splits: DataSplits, names: tuple[str, ...], num_classes: int, run: Path) -> None:
    """Raise UserError unless the data set has the `num_classes` classes called `names` that the run was trained on.

    If a class folder was added or renamed, the classes after it have other numbers, and the run would use wrong labels.
    """
    for k, (before, now) in enumerate(zip_longest(names, splits.classes, fillvalue="not there")):
        if before != now:
            raise UserError(f"{run} was trained on other classes: class {k} was {before} and is {now} in the data set")
    if num_classes != splits.num_classes:
        raise UserError(f"{run} was trained on {num_classes} classes, and the data set has {splits.num_classes}")


def per_class(data: ImageSet | StreamedSet, count: int, num_classes: int, seed: int) -> Tensor:
    """Return the sorted indices (num_classes * count,) of `count` images of each class, drawn with `seed`.

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
    """Hold out `count` images, drawn with `seed`; return (the remaining images, the held-out images).

    The same number is drawn from each class, but at most a tenth of it. If these are too few, the others are the same
    fraction of each class, so that no rare class is held out entirely.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    rank = torch.empty(len(data), dtype=torch.float64)  # images are held out in the order of this rank
    for k in range(num_classes):
        members = (data.labels[order] == k).nonzero().flatten()
        place = torch.arange(1, len(members) + 1, dtype=torch.float64)
        rank[members] = torch.where(10 * place <= len(members), place, len(data) + place / len(members))
    held = order[rank.argsort(stable=True)[:count]].sort().values
    keep = torch.ones(len(data), dtype=torch.bool)
    keep[held] = False
    return data.take(keep.nonzero().flatten()), data.take(held)
