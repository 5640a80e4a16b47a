"""A cache of decoded images: one memory-mapped file per split, in the folder of the data set."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmcla_fast.data.images import in_threads, noting_unreadable, unreadable_error
from rmcla_fast.data.splits import ImageSet
from rmcla_fast.errors import UserError

CACHE = ".rmcla-cache"

Progress = Callable[[Sequence[Path], str], Iterator[Path]]


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
    path = cache_path(root, split, listing.paths, what)
    images = _cached(path, (len(listing.paths), *shape))
    if images is None:
        _write(path, listing, shape, pixels, progress)
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(listing.labels))


def cache_path(root: Path, name: str, paths: list[Path], what: str) -> Path:
    """Return the path of the cache file for what was read from these files; its folder is described at `pack`."""
    folder = root / CACHE if os.access(root, os.W_OK) else Path.home() / ".cache" / "rmcla_fast"
    return folder / f"{name}-{_fingerprint(root, paths, what)}.npy"


def _cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached images, memory-mapped; None if there is no cache or it is damaged."""
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)  # "c", since torch warns about read-only arrays
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _fingerprint(root: Path, paths: list[Path], what: str) -> str:
    """Return a hash that changes with the name, size or modification time of any file."""
    facts = [(str(path.relative_to(root)), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([str(root.resolve()), what, facts]).encode()).hexdigest()[:20]


def _write(
    target: Path,
    listing: Listing,
    shape: tuple[int, int, int],
    pixels: Callable[[Path], np.ndarray],
    progress: Progress | None,
) -> None:
    """Decode every image into a temporary file, and rename it to `target`.

    Raises:
        UserError: unreadable images (the message names them), or a file that cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise UserError(f"the image cache {target.parent} cannot be written: {error.strerror}") from error
    bad: dict[Path, str] = {}
    try:
        packed: Any = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint8, shape=(len(listing.paths), *shape)
        )
        _reserve(Path(temporary))

        def decode_into_row(item: tuple[int, Path]) -> None:
            row, path = item
            with noting_unreadable(bad, path):
                packed[row] = pixels(path)

        for _ in in_threads(decode_into_row, enumerate(with_progress(listing.paths, "packing", progress))):
            pass
        if bad:
            raise unreadable_error(bad)
        packed.flush()
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp allows only the owner, and a data set may be shared
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"the image cache {target} cannot be written: {error.strerror}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _reserve(path: Path) -> None:
    """Allocate the file's blocks on the disk, since a full disk would kill a process that writes to a memory map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def with_progress(paths: list[Path], what: str, progress: Progress | None) -> Iterator[Path]:
    """Iterate over the paths, through the progress bar if there is one."""
    return progress(paths, what) if progress else iter(paths)
