"""A reader of the .mat files of a data set, whose sizes are checked before scipy reads them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rmcla_fast.errors import UserError, need

MOST_VARIABLES = 100
MOST_BYTES = 2**30  # the training images of SVHN have 225 MB
HEADER, TAG, PIECE = 128, 8, 2**20  # bytes
VERSION_7_3 = 0x0200
MATRIX, COMPRESSED = 14, 15  # types of a variable
NUMERIC = frozenset(("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "single", "double"))


class _IsHDF5(Exception):
    """The file is of MATLAB 7.3, which is another format."""


def load_matlab(path: Path, names: tuple[str, ...], address: str) -> dict[str, np.ndarray]:
    """Return the numeric variables of these names, in a file of MATLAB 5 to 7.2. `address` is where the original is.

    Raises:
        UserError: a file of MATLAB 7.3, or one that is corrupt, cut short or larger than a data set's.
    """
    matlab = need("scipy.io", "train", "the svhn data set")
    variables: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            for stream in _variables(file):
                ((name, _, kind),) = matlab.whosmat(stream)
                if name in names and kind in NUMERIC:  # scipy reads nested cells by recursion, which has no limit
                    variables[name] = matlab.loadmat(stream)[name]
    except _IsHDF5 as error:
        raise UserError(
            f"{path} is a MATLAB 7.3 file (HDF5), which is not supported; the original is at {address}"
        ) from error
    except Exception as error:  # scipy raises all kinds of exceptions for a corrupt file
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is corrupt or cut short ({type(error).__name__}: {cause})") from error
    for name in names:
        if name not in variables:
            raise UserError(f"{path} is corrupt: it has no array of numbers {name}; the original is at {address}")
    return variables


def _variables(file: BinaryIO) -> Iterator[BytesIO]:
    """Yield each variable as a file of its own, which is not compressed.

    Raises:
        _IsHDF5: a file of MATLAB 7.3.
        ValueError: a file that is not of MATLAB 5, is cut short, or has too many or too large variables.
    """
    header = file.read(HEADER)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None:
        raise ValueError("this is no MATLAB file")
    if struct.unpack(order + "H", header[124:126]) == (VERSION_7_3,):
        raise _IsHDF5
    room = MOST_BYTES
    for _ in range(MOST_VARIABLES):
        tag = file.read(TAG)
        if not tag:
            return
        kind, size = struct.unpack(order + "II", tag)
        variable = BytesIO()
        variable.write(header)
        if kind != COMPRESSED:
            variable.write(tag)
        inflate = zlib.decompressobj().decompress if kind == COMPRESSED else lambda piece, _: piece
        while size:
            piece = file.read(min(size, PIECE))
            if not piece:
                raise ValueError("a variable is cut short")
            size -= len(piece)
            room -= variable.write(inflate(piece, room + 1))
            if room < 0:
                raise ValueError(f"the variables have more than {MOST_BYTES} bytes")
        length = variable.tell() - HEADER - TAG
        if struct.unpack_from(order + "II", variable.getbuffer(), HEADER) != (MATRIX, length):
            raise ValueError("a variable is no array")
        variable.seek(0)
        yield variable
    raise ValueError(f"more than {MOST_VARIABLES} variables")
