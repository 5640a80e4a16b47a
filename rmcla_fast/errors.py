"""Errors that the command line prints as one sentence and an exit code, and the import of optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """A request that cannot be fulfilled; its text is one sentence with the cause and what to do. Exit code 2."""

    exit_code = 2


class RunFailed(UserError):
    """A run that stopped and can be resumed; its text says in one sentence where and how to go on. Exit code 1."""

    exit_code = 1


class Interrupted(RunFailed):
    """A run that was ended by Ctrl-C or SIGTERM, after it wrote its checkpoint. Exit code 128 plus the signal."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + signal


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
