"""Image folders, train/CLASS/*.png and test/CLASS/*.png (or val/), which are decoded once into a cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rmcla_fast import sealed
from rmcla_fast.data.cache import Listing, Progress, cache_path, pack, with_progress
from rmcla_fast.data.images import (
    GREY_MODES,
    SUFFIXES,
    decode,
    first_names,
    in_threads,
    noting_unreadable,
    open_image,
    unreadable_error,
)
from rmcla_fast.data.splits import DataSplits
from rmcla_fast.errors import UserError, need
from rmcla_fast.files import replacing
from rmcla_fast.options import AT_LEAST_1, fact, one_of
from rmcla_fast.schema import Mismatch, read_as
from rmcla_fast.text import counted


def load_folder(
    data_dir: Path | None, *, skip_unreadable: bool = False, progress: Progress | None = None
) -> DataSplits:
    """Return both splits of an image folder, memory-mapped from the cache.

    All images must have the same size. They get one channel if all of them are grey, and three otherwise.

    Raises:
        UserError: a folder that is missing or empty, a class without a readable image or in one split only, an image
            that cannot be read (unless `skip_unreadable`), images of different sizes or of more than 8 bits.
    """
    root, classes, listings = list_splits("folder", data_dir, skip_unreadable, progress)
    size, mode = _known_size(root, listings)
    shape = (1 if mode == "L" else 3, size[1], size[0])

    def pixels(path: Path) -> np.ndarray:
        return decode(path, mode).reshape(*shape[1:], shape[0]).transpose(2, 0, 1)

    packed = {split: pack(root, split, listing, shape, mode, pixels, progress) for split, listing in listings.items()}
    return DataSplits(packed["train"], packed["test"], len(classes), classes)


def list_splits(
    name: str, data_dir: Path | None, skip_unreadable: bool, progress: Progress | None, address: str = ""
) -> tuple[Path, tuple[str, ...], dict[str, Listing]]:
    """Return data_dir, the names of the classes, and {"train": its images, "test": its images}.

    Raises:
        UserError: as `split_folders`, or a folder without an image, or without a readable one of some class.
    """
    root, folders = split_folders(name, data_dir, address)
    classes = class_names(folders["train"])
    listings = {split: list_images(folder, classes) for split, folder in folders.items()}
    if skip_unreadable:
        listings = {split: readable_only(listing, progress) for split, listing in listings.items()}
    for split, folder in folders.items():
        require_every_class(folder, listings[split], classes)
    return root, classes, listings


def split_folders(name: str, data_dir: Path | None, address: str = "") -> tuple[Path, dict[str, Path]]:
    """Return (data_dir, {"train": its train folder, "test": its test or val folder}).

    Raises:
        UserError: no data_dir, or a folder that does not exist. `address` is where the data set can be found.
    """
    wanted = "expected the folders train/CLASS and test/CLASS (or val/CLASS) with images in it"
    source = f"; it is at {address}" if address else ""
    if data_dir is None:
        raise UserError(f"the data set {name} is missing: give --data-dir; {wanted}{source}")
    splits = ("val", "test") if name == "imagenet" else ("test", "val")  # ImageNet's test images have no labels
    test = next((data_dir / split for split in splits if (data_dir / split).is_dir()), None)
    if test is None or not (data_dir / "train").is_dir():
        what = (
            f"{data_dir} has no folder {'train' if test else 'test or val'}"
            if data_dir.is_dir()
            else f"there is no {data_dir}"
        )
        raise UserError(f"the data set {name} is missing: {what}; {wanted}{source}")
    return data_dir, {"train": data_dir / "train", "test": test}


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders, where the k-th is class k."""
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise UserError(f"{folder} has no folders in it: expected one folder of images for each class")
    return names


def list_images(folder: Path, classes: tuple[str, ...]) -> Listing:
    """Return every image file of the split.

    Raises:
        UserError: a class folder that does not exist in the training split.
    """
    known = set(classes)
    for name in class_names(folder):
        if name not in known:
            raise UserError(f"{folder / name} is a class that the training folder does not have")
    listing, others = images_of(folder, classes)
    loose = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    _say_what_is_left_out(folder, sorted(loose + others))
    return listing


def images_of(folder: Path, classes: tuple[str, ...]) -> tuple[Listing, list[Path]]:
    """Return every image file in the class folders, and their other files; a class without a folder has no images."""
    paths, labels, others = [], [], []
    for k, name in enumerate(classes):
        files = sorted(_files(folder / name)) if (folder / name).is_dir() else []
        images = [path for path in files if is_image(path)]
        paths += images
        labels += [k] * len(images)
        others += [path for path in files if not is_image(path)]
    return Listing(paths, np.array(labels, dtype=np.int64)), others


def is_image(path: Path) -> bool:
    """Return whether the file has the suffix of an image that can be read."""
    return path.suffix.lower() in SUFFIXES


def _say_what_is_left_out(split: Path, left_out: list[Path]) -> None:
    """Warn of files in a split that are not taken for images: those of other kinds, and those outside the classes."""
    if left_out:
        names = ", ".join(str(path.relative_to(split)) for path in left_out[:3])
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warnings.warn(
            f"left out {counted(len(left_out), 'file')} of {split}: {names}{more}; an image lies in a "
            f"class folder and has one of the suffixes {', '.join(sorted(SUFFIXES))}",
            stacklevel=2,
        )


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files in the folder and its subfolders, following links but without hidden files.

    Raises:
        OSError: a folder that cannot be read.
    """
    return filter(is_image, _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in the folder and its subfolders, following links but without hidden ones."""

    def raise_error(error: OSError) -> None:
        raise error

    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=raise_error):
        place = os.path.realpath(parent)
        if place in visited:  # a link to a parent folder would never end
            folders.clear()
            continue
        visited.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def require_every_class(folder: Path, listing: Listing, classes: tuple[str, ...]) -> None:
    """Raise UserError if a class has no image."""
    for name, count in zip(classes, np.bincount(listing.labels, minlength=len(classes)), strict=True):
        if count == 0:
            raise UserError(f"the class folder {folder / name} has no readable image")


def readable_only(listing: Listing, progress: Progress | None) -> Listing:
    """Return the listing without the files that cannot be decoded, and name these in a warning."""
    bad: dict[Path, str] = {}

    def readable(path: Path) -> bool:
        with noting_unreadable(bad, path):
            decode(path, "RGB")
        return path not in bad

    need("PIL.Image", "train", "the image folder")
    paths = listing.paths
    keep = np.fromiter(in_threads(readable, with_progress(paths, "checking", progress)), dtype=bool, count=len(paths))
    if bad:
        warnings.warn(f"left out {len(bad)} of {len(keep)} images, unreadable: {first_names(bad)}", stacklevel=2)
    return Listing([path for path, kept in zip(paths, keep, strict=True) if kept], listing.labels[keep])


@dataclass(frozen=True)
class _Size:
    """The content of the cache's file with the size that all images have, and the mode in which they are decoded."""

    mode: str = fact(one_of(("L", "RGB")))
    width: int = fact(AT_LEAST_1)
    height: int = fact(AT_LEAST_1)


def _known_size(root: Path, listings: dict[str, Listing]) -> tuple[tuple[int, int], str]:
    """Return `_common_size` of all images; the result is kept in the cache, so that no header is read twice."""
    everything = [path for listing in listings.values() for path in listing.paths]
    path = None
    with suppress(OSError):  # if a file is gone, `_common_size` names it
        path = cache_path(root, "size", everything, ", ".join(listings)).with_suffix(".json")
    with suppress(OSError, sealed.Damaged, Mismatch):
        if path:
            known = read_as(_Size, sealed.load(path))
            return (known.width, known.height), known.mode
    size, mode = _common_size(everything)
    if path:
        with suppress(OSError):  # if the cache cannot be written, `pack` reports it
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(sealed.dumps(asdict(_Size(mode, *size))))
    return size, mode


def _common_size(paths: list[Path]) -> tuple[tuple[int, int], str]:
    """Return the (width, height) of all images, and "L" if all of them are grey, else "RGB"; read only the headers.

    Raises:
        UserError: an unreadable image, images of different sizes or of more than 8 bits.
    """
    need("PIL.Image", "train", "the image folder")
    bad: dict[Path, str] = {}

    def header(path: Path) -> tuple[tuple[int, int], str]:
        with noting_unreadable(bad, path), open_image(path) as image:
            return image.size, image.mode
        return (0, 0), ""  # the image is unreadable

    known = list(in_threads(header, paths))
    if bad:
        raise unreadable_error(bad)
    size = known[0][0]
    for path, (other, _) in zip(paths, known, strict=True):
        if other != size:
            raise UserError(
                f"images must share one size: {paths[0]} is {size[0]}x{size[1]} and {path} is {other[0]}x{other[1]}; "
                "resize them first"
            )
    return size, "L" if all(mode in GREY_MODES for _, mode in known) else "RGB"
