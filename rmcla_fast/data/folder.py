"""Image folders, train/CLASS/*.png and test/CLASS/*.png (or val/), which are decoded once into a cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rmcla_fast import sealed
from rmcla_fast.data.cache import Listing, Progress, cache_path, first_names, pack, unreadable_error, with_progress
from rmcla_fast.data.splits import DataSplits
from rmcla_fast.errors import UserError, need
from rmcla_fast.files import replacing
from rmcla_fast.options import AT_LEAST_1, fact, one_of
from rmcla_fast.schema import Mismatch, read_as

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"))
GREY_MODES = frozenset(("1", "L", "LA"))
COLOUR_MODES = frozenset(("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La"))


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
    for name in class_names(folder):
        if name not in classes:
            raise UserError(f"{folder / name} is a class that the training folder does not have")
    paths, labels = [], []
    for k, name in enumerate(classes):
        files = sorted(_image_files(folder / name)) if (folder / name).is_dir() else []
        paths += files
        labels += [k] * len(files)
    return Listing(paths, np.array(labels, dtype=np.int64))


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files in the folder and its subfolders, following links but without hidden files.

    Raises:
        OSError: a folder that cannot be read.
    """

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
        found = (Path(parent, name) for name in files if not name.startswith("."))
        yield from (path for path in found if path.suffix.lower() in SUFFIXES)


def decode(path: Path, mode: str) -> np.ndarray:
    """Return the image as uint8, (H, W) for mode "L" and (H, W, 3) for "RGB", without the rotation in its EXIF data.

    Raises:
        UserError: pixels of more than 8 bits.
        Exception: any exception that Pillow raises for a file that it cannot read.
    """
    from PIL import Image

    with Image.open(path) as image:
        check_bits(path, image.mode)
        return np.asarray(image.convert(mode))


def check_bits(path: Path, mode: str) -> None:
    """Raise UserError if the pixels have more than 8 bits, which Pillow would clip to white."""
    if mode not in GREY_MODES | COLOUR_MODES:
        raise UserError(f"{path} has pixels of mode {mode}; convert it to 8 bits per channel first")


def require_every_class(folder: Path, listing: Listing, classes: tuple[str, ...]) -> None:
    """Raise UserError if a class has no image."""
    for k, name in enumerate(classes):
        if not (listing.labels == k).any():
            raise UserError(f"the class folder {folder / name} has no readable image")


def readable_only(listing: Listing, progress: Progress | None) -> Listing:
    """Return the listing without the files that cannot be decoded, and name these in a warning."""

    def readable(path: Path) -> bool:
        try:
            decode(path, "RGB")
        except UserError:
            raise
        except Exception:  # Pillow raises all kinds of exceptions for a corrupt file
            return False
        return True

    need("PIL.Image", "train", "the image folder")
    with ThreadPoolExecutor() as pool:
        keep = np.fromiter(
            pool.map(readable, with_progress(listing.paths, "checking", progress)),
            dtype=bool,
            count=len(listing.paths),
        )
    bad = [path for path, kept in zip(listing.paths, keep, strict=True) if not kept]
    if bad:
        warnings.warn(f"left out {len(bad)} of {len(keep)} images, unreadable: {first_names(bad)}", stacklevel=2)
    return Listing([path for path, kept in zip(listing.paths, keep, strict=True) if kept], listing.labels[keep])


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
    pil = need("PIL.Image", "train", "the image folder")

    def header(path: Path) -> tuple[tuple[int, int], str] | None:
        try:
            with pil.open(path) as image:
                return image.size, image.mode
        except Exception:  # Pillow raises all kinds of exceptions for a corrupt file
            return None

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(header, paths))
    bad = [path for path, found in zip(paths, headers, strict=True) if found is None]
    if bad:
        raise unreadable_error(bad)
    known = [found for found in headers if found is not None]
    size = known[0][0]
    for path, (other, mode) in zip(paths, known, strict=True):
        if other != size:
            raise UserError(
                f"images must share one size: {paths[0]} is {size[0]}x{size[1]} and {path} is {other[0]}x{other[1]}; "
                "resize them first"
            )
        check_bits(path, mode)
    return size, "L" if all(mode in GREY_MODES for _, mode in known) else "RGB"
