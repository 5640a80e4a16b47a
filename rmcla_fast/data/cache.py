"""Decoded images, packed once into a memory-mapped file beside the data set."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmcla_fast.data.splits import ImageSet
from rmcla_fast.errors import UserError

CACHE = ".rmcla-cache"

Progress = Callable[[Sequence[Path], str], Iterator[Path]]


@dataclass(frozen=True)
class Listing:
    """The image files of one split and their labels, by class and then by name; no file has been opened."""

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
    """The split's images, memory-mapped from the cache, which is written where it is not there yet.

    Args:
        root: the data set's folder; the cache is in it, or in the user's cache folder where it cannot be written.
        shape: (C, H, W) of what `pixels` gives.
        what: what `pixels` does; the cache of another is not used.
        pixels: decodes one file; whatever it raises but a UserError makes the file an unreadable image.
    """
    path = cache_path(root, split, listing.paths, what)
    images = _cached(path, (len(listing.paths), *shape))
    if images is None:
        _write(path, listing, shape, pixels, progress)
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(listing.labels))


def cache_path(root: Path, name: str, paths: list[Path], what: str) -> Path:
    """Where something that was read off these files is kept, or will be; see `pack`."""
    folder = root / CACHE if os.access(root, os.W_OK) else Path.home() / ".cache" / "rmcla_fast"
    return folder / f"{name}-{_fingerprint(root, paths, what)}.npy"


def _cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cache, memory-mapped; None where there is none or it is damaged."""
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)  # "c": torch warns at a read-only array
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _fingerprint(root: Path, paths: list[Path], what: str) -> str:
    """Changes with the name, size or time of any file, so that a changed folder is packed anew."""
    facts = [(str(path.relative_to(root)), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([str(root.resolve()), what, facts]).encode()).hexdigest()[:20]


def _write(
    target: Path,
    listing: Listing,
    shape: tuple[int, int, int],
    pixels: Callable[[Path], np.ndarray],
    progress: Progress | None,
) -> None:
    """Decodes every image into `target`, by way of a temporary file; stops at unreadable images, naming them."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise UserError(f"the image cache {target.parent} cannot be written: {error.strerror}") from error
    bad: list[Path] = []
    try:
        packed: Any = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint8, shape=(len(listing.paths), *shape)
        )
        _reserve(Path(temporary))

        def one(item: tuple[int, Path]) -> None:
            row, path = item
            try:
                packed[row] = pixels(path)
            except UserError:
                raise
            except Exception:  # Pillow raises nearly anything on a corrupt file
                bad.append(path)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(one, enumerate(shown(listing.paths, "packing", progress))):
                pass
        if bad:
            raise UserError(name_unreadable(sorted(bad)))
        packed.flush()
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's is the owner's alone, and a data set may be shared
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"the image cache {target} cannot be written: {error.strerror}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _reserve(path: Path) -> None:
    """Takes the file's blocks on the disk: a write through a memory map has no other way to fail than to kill."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _umask() -> int:
    """The process's; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def name_unreadable(bad: list[Path]) -> str:
    return f"unreadable image: {named(bad)}; remove it, or leave it out with --skip-unreadable"


def named(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def shown(paths: list[Path], what: str, progress: Progress | None) -> Iterator[Path]:
    return progress(paths, what) if progress else iter(paths)
