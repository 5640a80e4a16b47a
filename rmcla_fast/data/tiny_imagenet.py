"""Tiny ImageNet: 200 classes of 64x64 images, in the folder as it is distributed.

The file wnids.txt lists the classes. Training images are train/CLASS/images/*.JPEG. The test split is the distributed
validation split: val/images/*.JPEG, whose classes are in val/val_annotations.txt. The distributed test images have no
labels and are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rmcla_fast.data.cache import Listing, Progress, pack
from rmcla_fast.data.folder import class_names, image_files, images_of, readable_only, require_every_class
from rmcla_fast.data.images import decode
from rmcla_fast.data.splits import DataSplits
from rmcla_fast.data.standard import missing
from rmcla_fast.errors import UserError, need
from rmcla_fast.schema import shortened

NAME, FOLDER = "tiny-imagenet", "tiny-imagenet-200"
ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
CLASSES, ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"
SIZE = 64


def load_tiny_imagenet(data_dir: Path | None, *, skip_unreadable: bool, progress: Progress | None) -> DataSplits:
    """Return both splits (N, 3, 64, 64), memory-mapped from the cache; grey images get three equal channels.

    Raises:
        UserError: a file or folder that is missing, a class without a readable training image, an annotation that is
            malformed or does not fit the images, an image that cannot be read (unless `skip_unreadable`) or has
            another size.
    """
    need("PIL.Image", "train", NAME)
    root = _root(data_dir)
    classes = _classes(root)
    listings = {"train": images_of(root / "train", classes)[0], "test": _test_images(root, classes)}
    if skip_unreadable:
        listings = {split: readable_only(listing, progress) for split, listing in listings.items()}
    require_every_class(root / "train", listings["train"], classes)
    train, test = (
        pack(root, split, listing, (3, SIZE, SIZE), "RGB", pixels, progress) for split, listing in listings.items()
    )
    return DataSplits(train, test, len(classes), classes)


def pixels(path: Path) -> np.ndarray:
    """Return the image as (3, 64, 64) uint8.

    Raises:
        UserError, Exception: as `decode`; and UserError for an image of another size.
    """
    image = decode(path, "RGB")
    height, width, _ = image.shape
    if (height, width) != (SIZE, SIZE):
        raise UserError(f"{path} is {width}x{height}; the images of {NAME} are {SIZE}x{SIZE}")
    return image.transpose(2, 0, 1)


def _root(data_dir: Path | None) -> Path:
    """Return the data set's own folder, after checking that all of its parts are there."""
    if data_dir is None:
        raise UserError(missing(NAME, ADDRESS, f"give --data-dir, the folder that holds {FOLDER}"))
    inside = data_dir / FOLDER
    root = inside if inside.is_dir() else data_dir
    parts = ((CLASSES, Path.is_file), ("train", Path.is_dir), (ANNOTATIONS, Path.is_file), ("val/images", Path.is_dir))
    for part, exists in parts:
        if not exists(root / part):
            wanted = f"{root / part} is not there; expected the folder {FOLDER} in {data_dir} (or that folder itself)"
            raise UserError(missing(NAME, ADDRESS, wanted))
    return root


def _classes(root: Path) -> tuple[str, ...]:
    """Return the names in wnids.txt, sorted, where the k-th is class k; each has a folder of training images."""
    listed = {line.strip() for line in _lines(root / CLASSES)} - {""}
    folders = set(class_names(root / "train"))
    for name in sorted(folders - listed):
        raise UserError(f"{root / 'train' / name} is a class that {CLASSES} does not list")
    for name in sorted(listed - folders):
        raise UserError(f"{root / CLASSES} lists the class {shortened(name)}, of which {root / 'train'} has no folder")
    return tuple(sorted(listed))


def _test_images(root: Path, classes: tuple[str, ...]) -> Listing:
    labels = _annotations(root, classes)
    paths = list(image_files(root / "val" / "images"))
    for name in sorted(labels.keys() - {path.name for path in paths}):
        raise UserError(f"{root / ANNOTATIONS} lists the image {shortened(name)}, which is not in val/images")
    for path in paths:
        if path.name not in labels:
            raise UserError(f"{path} is an image that {ANNOTATIONS} does not list")
    paths.sort(key=lambda path: (labels[path.name], path))
    return Listing(paths, np.array([labels[path.name] for path in paths], dtype=np.int64))


def _annotations(root: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Return the label of each image that val_annotations.txt lists, by the image's file name."""
    numbers = {name: k for k, name in enumerate(classes)}
    labels: dict[str, int] = {}
    for row, line in enumerate(_lines(root / ANNOTATIONS), start=1):
        if not line.strip():
            continue
        place = f"line {row} of {root / ANNOTATIONS}"
        image, *rest = line.split("\t")  # the rest is the class and four coordinates of a box
        if not rest:
            raise UserError(f"{place} must be an image's name, a tab and its class; got {shortened(line)}")
        if rest[0] not in numbers:
            raise UserError(f"{place} has the class {shortened(rest[0])}, which {CLASSES} does not list")
        if image in labels:
            raise UserError(f"{place} lists the image {shortened(image)} a second time")
        labels[image] = numbers[rest[0]]
    return labels


def _lines(path: Path) -> list[str]:
    # What is no UTF-8 matches no name, and the errors for unknown names show it.
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
