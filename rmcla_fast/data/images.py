"""The opening and decoding of image files, so that no file costs more than its pixels or touches anything else."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rmcla_fast.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
)
# Pillow looks at the content and not at the suffix. Of its other formats, EPS would start the program Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
GREY_MODES = frozenset(("1", "L", "LA"))
COLOUR_MODES = frozenset(("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La"))

LARGEST_FILE = 2**30  # bytes; an uncompressed image of the most pixels that Pillow accepts has 0.7 GB
LARGE_FILE, LARGE_IMAGE = 2**24, 2**22  # bytes and pixels; threads decode images above these sizes one at a time
IN_FLIGHT = 1024

Item = TypeVar("Item")
Result = TypeVar("Result")

_one_large_image = threading.RLock()


class Unreadable(Exception):
    """An image file that is not opened; the text is the reason."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open the first frame of an image file, whose pixels are decoded when they are used.

    If the image is large, other threads wait until the `with` block ends before they decode another large one.

    Raises:
        UserError: pixels of more than 8 bits, which Pillow would clip to white.
        Exception: `Unreadable`, or any exception that Pillow raises for a file that it cannot read.
    """
    from PIL import Image

    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # to open a pipe would wait for a writer, and a device may have no end
        raise Unreadable("not a regular file")
    if facts.st_size > LARGEST_FILE:
        raise Unreadable(f"{facts.st_size} bytes, more than {LARGEST_FILE}")
    with ExitStack() as opened:
        if facts.st_size > LARGE_FILE:
            opened.enter_context(_one_large_image)
        try:
            image = opened.enter_context(Image.open(path, formats=FORMATS))
        except Image.DecompressionBombError as error:
            raise Unreadable(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from error
        if image.mode not in GREY_MODES | COLOUR_MODES:
            raise UserError(f"{path} has pixels of mode {image.mode}; convert it to 8 bits per channel first")
        if image.width * image.height > LARGE_IMAGE:
            opened.enter_context(_one_large_image)
        yield image


def converted(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in this mode; an image that already has it is not copied."""
    return image if image.mode == mode else image.convert(mode)


def decode(path: Path, mode: str) -> np.ndarray:
    """Return the image as uint8, (H, W) for mode "L" and (H, W, 3) for "RGB", without the rotation in its EXIF data.

    Raises:
        UserError, Exception: as `open_image`.
    """
    with open_image(path) as image:
        return np.asarray(converted(image, mode))


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` in the order of the items, computed by threads.

    Items are taken in pieces, so that a progress bar over them is right and a million of them do not wait in memory.
    """
    rest = iter(items)
    with ThreadPoolExecutor() as pool:
        while piece := list(islice(rest, IN_FLIGHT)):
            yield from pool.map(function, piece)


@contextmanager
def noting_unreadable(bad: dict[Path, str], path: Path) -> Iterator[None]:
    """Note the path in `bad`, with the reason or "", if its image cannot be decoded in the `with` block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Pillow raises all kinds of exceptions for a corrupt file
        bad[path] = _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (error.strerror or "") if isinstance(error, OSError) else ""


def unreadable_error(bad: Mapping[Path, str]) -> UserError:
    """Return the error for images that cannot be decoded; `bad` has the reason of each."""
    return UserError(f"unreadable image: {first_names(bad)}; remove it, or leave it out with --skip-unreadable")


def first_names(bad: Mapping[Path, str]) -> str:
    """Return the first three paths in alphabetical order with their reasons as text, and how many more there are."""
    names = [f"{path} ({bad[path]})" if bad[path] else str(path) for path in sorted(bad)[:3]]
    return ", ".join(names) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
