"""The errors that the command line turns into one sentence and an exit code, and the import of what an extra brings."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """What was asked for cannot be done as asked: one sentence that names what came and what to do. Exit code 2."""

    exit_code = 2


class RunFailed(UserError):
    """A run that stopped midway and can be resumed: one sentence where it stopped, how to go on. Exit code 1."""

    exit_code = 1


class Interrupted(RunFailed):
    """A run that Ctrl-C or SIGTERM ended, after its checkpoint was written. Exit code 128 plus the signal."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + signal


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports `module`, or says in one sentence which extra brings it.

    Args:
        module: the module's name, "matplotlib.pyplot".
        extra: the extra of rmcla-fast that installs it, "train" or "eval".
        purpose: what it is needed for, the sentence's subject: "the digits data set".

    Raises:
        UserError: the module, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise UserError(
            f"{purpose} needs {missing}, which is not installed; pip install 'rmcla-fast[{extra}]'"
        ) from error
