"""`load(name)`: a data set by its name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rmcla_fast.data.cache import Progress
from rmcla_fast.data.folder import load_folder
from rmcla_fast.data.imagenet import load_imagenet
from rmcla_fast.data.splits import DataSplits, check, per_class
from rmcla_fast.data.standard import cifar, digits, svhn
from rmcla_fast.data.tiny_imagenet import load_tiny_imagenet
from rmcla_fast.errors import UserError
from rmcla_fast.text import did_you_mean

DATASETS = ("digits", "cifar10", "cifar100", "svhn", "imagenet", "tiny-imagenet", "folder")


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    images_per_class: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> DataSplits:
    """Load a data set: uint8 images (N, C, H, W) and int64 labels (N,), for training and for test.

    Args:
        name: "digits" (needs no files), "cifar10", "cifar100", "svhn", "imagenet", "tiny-imagenet" or "folder".
        data_dir: the folder of the data set, or the folder that contains it.
        images_per_class: keep this many training images of each class, drawn with `seed`; None keeps all of them.
        seed: the seed of this draw. The split of digits does not depend on it.
        skip_unreadable: leave out images that cannot be decoded, instead of raising an error (imagenet,
            tiny-imagenet and folder).
        progress: a function (paths, what is done) -> iterator over the paths, which can show a progress bar.

    Returns:
        The splits. The training images of imagenet are a StreamedSet, which stays on disk.

    Raises:
        UserError: an unknown name, files that are missing (the message has the official address) or corrupt, a class
            without images, or a label outside [0, num_classes).
    """
    folder = None if data_dir is None else Path(os.path.expanduser(data_dir))
    try:
        if name == "digits":
            splits = digits()
        elif name in ("cifar10", "cifar100"):
            splits = cifar(name, folder)
        elif name == "svhn":
            splits = svhn(folder)
        elif name == "folder":
            splits = load_folder(folder, skip_unreadable=skip_unreadable, progress=progress)
        elif name == "imagenet":
            splits = load_imagenet(folder, skip_unreadable=skip_unreadable, progress=progress)
        elif name == "tiny-imagenet":
            splits = load_tiny_imagenet(folder, skip_unreadable=skip_unreadable, progress=progress)
        else:
            hint = did_you_mean(name, DATASETS)
            raise UserError(f"unknown data set {name!r}; {hint}one of: {', '.join(DATASETS)}")
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    splits = check(name, splits)
    if images_per_class is None:
        return splits
    chosen = per_class(splits.train, images_per_class, splits.num_classes, seed)
    return replace(splits, train=splits.train.take(chosen))
