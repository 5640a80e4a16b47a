"""More training images, from an .npz file with the arrays `image` and `label`, as generated images are distributed.

Images that are stored as they are (`np.savez`) are memory-mapped from where they are in the file. Compressed ones
(`np.savez_compressed`) are unpacked once into the cache. No array of Python objects is read, since it is a pickle.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from rmcla_fast.data.cache import Progress, cached
from rmcla_fast.data.splits import DataSplits, ExtraSet
from rmcla_fast.errors import UserError
from rmcla_fast.options import QUOTES
from rmcla_fast.schema import shortened

IMAGE, LABEL = "image", "label"
NEEDED = f"an .npz file with the arrays {IMAGE} and {LABEL} is needed"
PIECE = 2**20
LOCAL_HEADER = 30  # bytes before the name of a member; its last four are the lengths of the name and of what follows it
MOST_DEFLATED = 1032  # deflate makes no more bytes of one than these
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class _Array:
    """An array in the archive, of which only the header has been read."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int  # bytes of its header

    @property
    def size(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        pickled = ", a pickle, which is never read" if self.dtype.hasobject else ""
        return f"{shortened(str(self.dtype)).strip(QUOTES)} {self.shape}{pickled}"


def load_extra(path: str | Path, splits: DataSplits, *, progress: Progress | None = None) -> ExtraSet:
    """Return the images (N, C, H, W) and labels of an .npz file, for training beside those of a data set.

    The file is read once, to compare it with its checksums. It must not be changed while the images are used.

    Args:
        path: an .npz file with the arrays `image` (N, H, W, C) uint8 and `label` (N,) of any integer type.
        splits: the data set, whose images have the same size and whose classes the labels are. A class may be missing.
        progress: a function (items, what is done) -> iterator over the items, which can show a progress bar.

    Raises:
        UserError: a file that is missing, damaged, no .npz file, or without these arrays; images of another type, size
            or number of channels; labels of another type or number, or outside [0, num_classes); no image at all.
    """
    path = Path(os.path.expanduser(path))
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise UserError(
                f"{path} is not a file; {NEEDED}" if path.exists() else f"there is no file {path}; {NEEDED}"
            )
        with path.open("rb") as file, _archive(path, file) as archive:
            image, label = _arrays(path, archive)
            _require_fit(path, image, label, splits)
            labels = _labels(path, archive, label, splits.num_classes)
            images = _images(path, file, archive, image, progress)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and numpy raise all kinds of exceptions for a damaged file
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is damaged or cut short ({cause})") from error
    checksum = f"{image.info.CRC:08x}-{label.info.CRC:08x}"
    return ExtraSet(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), path, checksum)


def require_same(extra: ExtraSet | None, images: int, checksum: str, run: Path) -> None:
    """Raise UserError unless these are the extra images that the run was trained on so far, which may be none."""
    if (0 if extra is None else len(extra), "" if extra is None else extra.checksum) == (images, checksum):
        return
    before = f"{images:,} extra images with the checksum {checksum}" if images else "no extra images"
    now = "there are none" if extra is None else f"{extra.path} has {len(extra):,} with the checksum {extra.checksum}"
    way_out = "give the file that it was started with" if images else "leave --extra-data out"
    raise UserError(f"{run} was trained on {before}, and now {now}; {way_out}")


def _archive(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """Return the zip archive in the file, which is cut short if it only begins as one."""
    if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):  # the latter is an archive without a member
        raise UserError(f"{path} is not an .npz file; {NEEDED}, such as np.savez writes")
    return zipfile.ZipFile(file)


def _arrays(path: Path, archive: zipfile.ZipFile) -> tuple[_Array, _Array]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    for name in (IMAGE, LABEL):
        if name not in members:
            there = ", ".join(shortened(member).strip("'") for member in list(members)[:10]) or "none"
            raise UserError(f"{path} has no array {name}; {NEEDED}; the arrays in it: {there}")
    return _header(archive, members[IMAGE]), _header(archive, members[LABEL])


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    """Read the header of an array, and compare the size that it claims with that of the member.

    Raises:
        ValueError, or what zipfile raises: the member is no array, or has another size than its header claims.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed in another way than numpy compresses")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"{info.filename} has a header of version {version}")
        shape, fortran, dtype = HEADERS[version](stream)
        array = _Array(info, shape, fortran, dtype, stream.tell())
    if dtype.hasobject:
        return array  # its pickle, which has another size, is refused for its type
    ratio = MOST_DEFLATED if info.compress_type == zipfile.ZIP_DEFLATED else 1
    if min(shape, default=1) < 0 or array.begin + array.size != info.file_size:
        raise ValueError(f"{info.filename} has another size than its shape {shape}")
    if info.header_offset + info.compress_size > archive.start_dir or info.file_size > ratio * info.compress_size:
        raise ValueError(f"{info.filename} claims more bytes than the file holds")
    return array


def _require_fit(path: Path, image: _Array, label: _Array, splits: DataSplits) -> None:
    """Raise UserError unless images and labels have the types and shapes that the data set needs."""
    channels, height, width = splits.train.shape
    if image.dtype != np.uint8 or len(image.shape) != 4 or image.shape[1:] != (height, width, channels):
        first = ", with the channels first" if image.shape[1:] == (channels, height, width) else ""
        raise UserError(
            f"the array {IMAGE} of {path} is {image}{first}; bytes from 0 to 255 as the training images have "
            f"them are needed, uint8 (N, {height}, {width}, {channels})"
        )
    if label.dtype.kind not in "iu" or label.shape != image.shape[:1]:
        raise UserError(
            f"the array {LABEL} of {path} is {label}; one integer for each image is needed, {image.shape[:1]}"
        )
    if not image.shape[0]:
        raise UserError(f"{path} has no images")


def _labels(path: Path, archive: zipfile.ZipFile, label: _Array, num_classes: int) -> np.ndarray:
    content = b"".join(_content(archive, label, None))
    labels = np.frombuffer(content, label.dtype)
    if labels.min() < 0 or labels.max() >= num_classes:
        row = int(((labels < 0) | (labels >= num_classes)).argmax())
        raise UserError(f"{path}: image {row} has label {labels[row]}; labels must lie in [0, {num_classes})")
    return labels.astype(np.int64)


def _images(
    path: Path, file: BinaryIO, archive: zipfile.ZipFile, image: _Array, progress: Progress | None
) -> np.ndarray:
    """Return the images (N, H, W, C), memory-mapped from the file itself or from the cache."""
    info = image.info
    if info.compress_type == zipfile.ZIP_STORED:
        for _ in _content(archive, image, progress):  # the end of the member is compared with its checksum
            pass
        begin = _begin_of_member(file, info) + image.begin
        # "c", since torch warns about read-only arrays. Nothing is written.
        flat: np.ndarray = np.memmap(file, np.uint8, "c", begin, (image.size,))  # type: ignore[call-overload]
    else:

        def unpack(packed: np.ndarray) -> None:
            at = 0
            for piece in _content(archive, image, progress):
                packed[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)

        flat = cached(path.parent, "extra", [path], (image.size,), f"{IMAGE} {info.CRC:08x}", unpack)
    return flat.reshape(image.shape, order="F" if image.fortran else "C")


def _content(archive: zipfile.ZipFile, array: _Array, progress: Progress | None) -> Iterator[bytes]:
    """Yield the bytes of an array in pieces.

    Raises:
        What zipfile raises for another checksum than that of the archive's directory, or another size.
    """
    pieces = range(0, array.size, PIECE)
    with archive.open(array.info) as stream:
        stream.read(array.begin)
        for at in progress(pieces, f"reading {array.info.filename}") if progress else pieces:
            piece = stream.read(size := min(PIECE, array.size - at))
            if len(piece) != size:
                raise EOFError(f"{array.info.filename} ends early")
            yield piece


def _begin_of_member(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return where the content of a stored member begins. Its own header says so, and not the archive's directory."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    return info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[-4:]))
