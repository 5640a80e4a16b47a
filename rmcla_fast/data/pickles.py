"""A reader of data-set pickles that never runs code from them: it accepts only numpy arrays and plain containers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from rmcla_fast.errors import UserError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Numbers:
    """A dtype of numbers or text that replaces numpy.dtype in a pickle; only the byte order of its state is used.

    numpy.dtype itself would accept any flags from the pickle. If they hide that an array holds objects, numpy would
    use bytes of the file as pointers.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"an array of {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose state in a pickle must have a dtype of numbers or text."""

    def __setstate__(self, state: Any) -> None:
        version, shape, numbers, fortran, content = state
        super().__setstate__((version, shape, _dtype(numbers), fortran, content))


_ARRAY_CLASS = object()  # replaces numpy.ndarray, which a pickle names but need not call


def _dtype(numbers: Any) -> np.dtype[Any]:
    if not isinstance(numbers, _Numbers):
        raise pickle.UnpicklingError("an array without a dtype")
    return numbers.dtype


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """Return an empty array; its shape and content follow as its state. It replaces numpy's function of this name."""
    if kind is not _ARRAY_CLASS:
        raise pickle.UnpicklingError("an array of a foreign type")
    return _Array(0, dtype=np.uint8)


def _scalar(numbers: Any, content: Any = None) -> Any:
    if not isinstance(content, bytes | str):
        raise pickle.UnpicklingError("a scalar that is not a number")
    return np.frombuffer(content if isinstance(content, bytes) else content.encode("latin1"), _dtype(numbers))[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes of latin-1 text, as which Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("a codec other than latin1")
    return text.encode("latin1")


_ACCEPTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ARRAY_CLASS,
    ("numpy", "dtype"): _Numbers,
    ("_codecs", "encode"): _encode,
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ACCEPTED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ACCEPTED[module, name]


def load_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in `path`, with str keys; strings of Python 2 are read as latin-1.

    Raises:
        UserError: the file is not a pickle, is truncated, is not a dictionary, or holds anything but arrays and plain
            containers.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is corrupt, or holds more than arrays and plain containers ({error})"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a corrupt pickle raises all kinds of exceptions
        raise UserError(f"{path} is corrupt or cut short ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; a dictionary was expected")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
