"""A cache of decoded images: one memory-mapped file per split, in the folder of the data set.

A file of the cache ends with a digest of its content, which is checked whenever it is opened. A damaged one is packed
again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import torch

from rmcla_fast import sealed
from rmcla_fast.data.images import in_threads, noting_unreadable, unreadable_error
from rmcla_fast.data.splits import ImageSet
from rmcla_fast.errors import UserError
from rmcla_fast.files import locked, replacing

CACHE = ".rmcla-cache"

Item = TypeVar("Item")


class Progress(Protocol):
    """A function that iterates over the items and shows a progress bar; `what` says what is done with them."""

    def __call__(self, items: Sequence[Item], what: str, /) -> Iterator[Item]: ...


@dataclass(frozen=True)
class Listing:
    """The image files of one split and their labels, sorted by class and then by name; no file has been opened."""

    paths: list[Path]
    labels: np.ndarray


def pack(
    root: Path,
    split: str,
    listing: Listing,
    shape: tuple[int, int, int],
    what: str,
    pixels: Callable[[Path], np.ndarray],
    progress: Progress | None,
) -> ImageSet:
    """Return the images of a split, memory-mapped from the cache; write the cache first if it does not exist.

    Args:
        root: the folder of the data set. The cache is in it, or in the user's cache folder if it is not writable.
        shape: (C, H, W) of the arrays that `pixels` returns.
        what: a description of what `pixels` does, so that a cache made by other decoding is not used.
        pixels: decodes one file. An exception other than a UserError means that the image is unreadable.

    Raises:
        UserError: an unreadable image, or a cache that cannot be written.
    """
    bad: dict[Path, str] = {}

    def decode_all(packed: np.ndarray) -> None:
        def decode_into_row(item: tuple[int, Path]) -> None:
            row, path = item
            with noting_unreadable(bad, path):
                packed[row] = pixels(path)

        for _ in in_threads(decode_into_row, enumerate(with_progress(listing.paths, "packing", progress))):
            pass
        if bad:
            raise unreadable_error(bad)

    full_shape = (len(listing.paths), *shape)
    images = cached(root, split, listing.paths, full_shape, f"{what} {full_shape}", decode_all)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(listing.labels))


def cached(
    root: Path, name: str, sources: list[Path], shape: tuple[int, ...], what: str, fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """Return bytes of this shape, memory-mapped from the cache; `fill` writes them first if they are not there.

    Args:
        root: the folder of the data set.
        name: the beginning of the cache file's name.
        sources: the files that the bytes are made from, in `root`.
        what: a description of what `fill` does, so that a cache made in another way is not used.
        fill: writes all bytes into the array that it is given. An exception leaves no cache behind.

    Raises:
        UserError: a cache that cannot be written, or what `fill` raises.
    """
    path = cache_path(root, name, sources, what).with_suffix(".images")
    packed = open_cached(path, shape)
    if packed is None:
        with locked(path.with_suffix(".lock"), waiting=f"another process packs {path}; waiting for it"):
            packed = open_cached(path, shape)  # another process may have packed it in the meantime
            if packed is None:
                _write(path, shape, fill)
                packed = open_cached(path, shape)
    if packed is None:
        raise UserError(f"the image cache {path} does not hold what was written; is its disk damaged?")
    return packed


def cache_path(root: Path, name: str, paths: list[Path], what: str) -> Path:
    """Return the path, without suffix, of the cache file for what was read from these files; see `pack`.

    Raises:
        UserError: the folder of the data set cannot be written, and the user has no home folder.
    """
    if os.access(root, os.W_OK):
        folder = root / CACHE
    else:
        try:
            folder = Path.home() / ".cache" / "rmcla_fast"
        except RuntimeError as error:  # the user has no entry in the list of users, as in some containers
            raise UserError(
                f"decoded images cannot be kept: {root} cannot be written and you have no home folder; set HOME to one"
            ) from error
    return folder / f"{name}-{_fingerprint(root, paths, what)}"


def open_cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached images, memory-mapped; None if there is no cache, or if it is damaged, with a warning.

    Raises:
        OSError: the system cannot read or map the file.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            size, _ = sealed.check_seal(file)
            if size != math.prod(shape):
                raise sealed.Damaged(f"has {size} bytes of images, and {math.prod(shape)} were expected")
        except sealed.Damaged as error:
            warnings.warn(f"the image cache {path} {error}; it is packed again", stacklevel=2)
            return None
        # "c", since torch warns about read-only arrays. A page beyond the end of the file would end the process.
        return np.memmap(file, np.uint8, "c", 0, shape)  # type: ignore[call-overload,no-any-return]


def _fingerprint(root: Path, paths: list[Path], what: str) -> str:
    """Return a hash that changes with the name, size or modification time of any file."""
    facts = [(str(path.relative_to(root)), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([str(root.resolve()), what, facts]).encode()).hexdigest()[:20]


def _write(target: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Let `fill` write the bytes into a temporary file that replaces `target`.

    Raises:
        UserError: a file that cannot be written, or what `fill` raises.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            _reserve(file, math.prod(shape))
            packed = np.memmap(file, np.uint8, "r+", 0, shape)  # type: ignore[call-overload]
            fill(packed)
            packed.flush()
            sealed.seal(file)
    except OSError as error:
        raise UserError(f"the image cache {target} cannot be written: {error.strerror}") from error


def _reserve(file: BinaryIO, size: int) -> None:
    """Allocate the file's blocks on the disk, since a full disk would kill a process that writes to a memory map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def with_progress(paths: list[Path], what: str, progress: Progress | None) -> Iterator[Path]:
    """Iterate over the paths, through the progress bar if there is one."""
    return progress(paths, what) if progress else iter(paths)
