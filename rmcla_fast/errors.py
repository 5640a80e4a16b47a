"""Errors that the command line prints as one sentence and an exit code, and the import of optional packages."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import torch


class UserError(Exception):
    """A request that cannot be fulfilled; its text is one sentence with the cause and what to do. Exit code 2."""

    exit_code = 2


class RunFailed(UserError):
    """A run that stopped and can be resumed; its text says in one sentence where and how to go on. Exit code 1."""

    exit_code = 1


class OutOfMemory(RunFailed):
    """A command for which the memory of the GPU or of the machine was too small. Exit code 1."""


class NotFinite(RunFailed):
    """A training run whose loss or weights were no longer finite. Exit code 1."""


class Interrupted(RunFailed):
    """A command that a signal ended; its text says what is kept and how to go on. Exit code 128 plus the signal."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.signal = signal
        self.exit_code = 128 + signal


def short_of_memory(error: BaseException) -> str:
    """Return whose memory was too small, such as "not enough memory on the GPU (tried to allocate 2.00 GiB)".

    Return "" if the error has another cause. Torch has a class of its own only for the memory of a GPU. For that of the
    machine it raises a RuntimeError, and Python a MemoryError.
    """
    text = str(error)
    short = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"))
    )
    if not short:
        return ""
    where = "the GPU" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in text else "this machine"
    amount = re.search(r"tried to allocate [\d.]+ \w+", text, re.IGNORECASE)
    return f"not enough memory on {where}" + (f" ({amount[0][0].lower()}{amount[0][1:]})" if amount else "")


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Import and return an optional module.

    Args:
        module: the name of the module, such as "matplotlib.pyplot".
        extra: the extra of rmcla-fast that installs it, "train" or "eval".
        purpose: what needs it, which is the subject of the error's sentence, such as "the digits data set".

    Raises:
        UserError: the module, or one that it imports, is not installed. The sentence has the install command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise UserError(
            f"{purpose} needs {missing}, which is not installed; pip install 'rmcla-fast[{extra}]'"
        ) from error
