"""A reader of data-set pickles that never runs code from them: it knows only numpy arrays and plain containers.

It interprets the opcodes itself. Python's unpickler would set attributes of any object that a pickle can name, and
would allocate any size that a file claims.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rmcla_fast.errors import UserError

MOST_BYTES = 2**30  # the largest official file, the training images of CIFAR-100, has 155 MB
MOST_OPCODES = 1_000_000  # the same file has 200,000

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_KNOWN = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(module, "_reconstruct"): "reconstruct" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
}
_DTYPE = re.compile("[biufcSU][0-9]{0,8}")
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_FLOATS = ("FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_LITERALS = frozenset((*_INTEGERS, *_FLOATS, *_TEXTS, *_BYTES))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}


class _Refused(Exception):
    """The pickle holds what no data set needs; the text says what."""


class _Name:
    """A name that a pickle may use; `meaning` is a value of _KNOWN."""

    def __init__(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _Refused("a name that is no text")
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}")
        self.meaning = _KNOWN[module, name]


class _Numbers:
    """The dtype of an array; its state, which follows it, can change the byte order alone."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _Refused(f"an array of the dtype {code if isinstance(code, str) else type(code).__name__}")
        self.dtype = np.dtype(code)


class _Reader:
    """The stack machine of one pickle.

    What it makes may be nested without end or hold itself, so it must not be compared, printed or walked through.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._room = 2 * len(
            content
        )  # a pickle holds each content once, and a text of it may have to become bytes first
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[Any, Any] = {}

    def load(self) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._content)):
            if count == MOST_OPCODES:
                raise _Refused(f"more than {MOST_OPCODES} opcodes")
            name = opcode.name
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                self._stack.append(_Name(*(self._pop(2) if argument is None else argument.split(" ", 1))))
            elif name == "MARK":
                self._below.append(self._stack)
                self._stack = []
            elif name not in ("PROTO", "FRAME", "STOP"):
                self._compose(name)
        return self._stack.pop()

    def _compose(self, name: str) -> None:
        """Run an opcode that makes a value of others, or adds to one."""
        if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            items = self._above_mark() if name == "TUPLE" else self._pop(int(name[-1]))
            self._stack.append(tuple(items))
        elif name in ("LIST", "APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._above_mark()
            self._top(list, new=name == "LIST").extend(items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._above_mark()
            if not all(isinstance(key, str | bytes) for key in items[::2]):
                raise _Refused("a dictionary with a key that is no text")
            self._top(dict, new=name == "DICT").update(zip(items[::2], items[1::2], strict=True))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            if not isinstance(function, _Name) or not isinstance(arguments, tuple):
                raise _Refused("a call of what is no function")
            self._stack.append(self._called(function.meaning, *arguments))
        elif name == "BUILD":
            (state,) = self._pop(1)
            self._set_state(self._stack[-1], state)
        else:
            raise _Refused(f"the opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise _Refused("an opcode without its operands")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _top(self, kind: type, new: bool) -> Any:
        """Return the container on top of the stack, which is a new one or must be of this kind."""
        if new:
            self._stack.append(kind())
        if type(self._stack[-1]) is not kind:
            raise _Refused("items for what is no container")
        return self._stack[-1]

    def _called(self, meaning: str, *arguments: Any) -> Any:
        """Return what numpy's or Python's function would return for the arguments that arrays have in a pickle."""
        if meaning == "dtype":
            return _Numbers(arguments[0])
        if meaning == "reconstruct" and isinstance(arguments[0], _Name) and arguments[0].meaning == "ndarray":
            return np.empty(0, np.uint8)  # its shape and content follow as its state
        if meaning == "scalar":
            numbers, content = arguments
            return np.frombuffer(self._checked(numbers, (), content), numbers.dtype)[0]
        if meaning == "encode" and isinstance(arguments[0], str) and arguments[1:] == ("latin1",):
            self._take(len(arguments[0]))
            return arguments[0].encode("latin1")  # Python 3 writes bytes so in protocol 2
        raise _Refused(f"a call of {meaning} with other arguments than those of an array")

    def _set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, _Numbers) and isinstance(state, tuple) and state[1] in ("<", ">", "=", "|"):
            target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is np.ndarray and isinstance(state, tuple):
            version, shape, numbers, fortran, content = state
            content = self._checked(numbers, shape, content)
            target.__setstate__((version, shape, numbers.dtype, fortran, content))
        else:
            raise _Refused("a state for what is no array")

    def _checked(self, numbers: Any, shape: Any, content: Any) -> bytes:
        """Return the content of an array as bytes, if it has the size that dtype and shape give.

        A text comes from Python 2, or from a pickle of Python 3 in protocol 0 to 2, with one byte per character.
        """
        if not isinstance(numbers, _Numbers) or not isinstance(shape, tuple) or not isinstance(content, bytes | str):
            raise _Refused("an array without a dtype, a shape or a content")
        if len(shape) > 8 or not all(type(side) is int and 0 <= side <= MOST_BYTES for side in shape):
            raise _Refused("an array of an impossible shape")
        if math.prod(shape) * max(1, numbers.dtype.itemsize) != len(content):
            raise _Refused(f"an array of another size than its shape {shape}")
        self._take(len(content))
        return content.encode("latin1") if isinstance(content, str) else content

    def _take(self, size: int) -> None:
        """Refuse a pickle that names one long content again and again."""
        self._room -= size
        if self._room < 0:
            raise _Refused("arrays that are larger than the file")


def read_whole(path: Path) -> bytes:
    """Return the bytes of the file.

    Raises:
        UserError: a file that cannot be read, or is larger than any file of a data set.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:  # a file with holes can claim any size
            raise UserError(f"{path} has {size} bytes, and no file of the data set has more than {MOST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def load_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in `path`, with str keys; strings of Python 2 are read as latin-1.

    Lists and tuples in it may be nested without end.

    Raises:
        UserError: the file is not a pickle, is truncated, is not a dictionary, is larger than a data set's, or holds
            anything but arrays and plain containers.
    """
    try:
        content = _Reader(read_whole(path)).load()
    except UserError:
        raise
    except Exception as error:  # a corrupt pickle raises all kinds of exceptions
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is refused: it is corrupt, or holds more than arrays and plain containers ({cause})"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; a dictionary was expected")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
