"""The command line, `rmcla`. Every error is one sentence on stderr with an exit code, and never a traceback."""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from contextlib import suppress
from signal import SIGINT
from typing import Any

from rmcla_fast.errors import UserError, short_of_memory
from rmcla_fast.text import printable
from rmcla_fast.training.interrupt import Stop, StopAtOnce

try:
    import typer
except ImportError:  # the base package installs the entry point, but not typer
    sys.exit("rmcla needs typer, which is not installed; pip install 'rmcla-fast[train]'")

from rmcla_fast.cli import compare, evaluate, gradients, info, recipes, reproduce, train

# typer raises this class of Click for wrong arguments; newer versions of typer contain Click and do not export it.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="rmcla",
    help="Train image classifiers that withstand adversarial images, for the price of one extra backward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("evaluate")(evaluate.command)
app.command("compare")(compare.command)
app.command("gradients")(gradients.command)
app.command("reproduce")(reproduce.command)
app.command("recipes")(recipes.command)
app.command("info")(info.command)


def main() -> None:
    """Run the command that the process was started with, and exit with its code."""
    warnings.formatwarning = lambda message, *_: f"rmcla: warning: {printable(message)}\n"
    # On a GPU, the first backward pass of a process can warn that PyTorch sets up a context by itself, as it should.
    warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns about metadata, which is not used
    threading.excepthook = _ignore_disk_errors
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: no character that is printed ends a command
    sys.path.append("")  # --model mine:net finds mine.py in the working folder, as with `python -m`
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt as stopped:  # a second signal while the first one is handled
        code = _stopped(stopped)
    sys.exit(code)


def _ignore_disk_errors(failure: threading.ExceptHookArgs) -> None:
    """Print what a thread raises, except an OSError.

    TensorBoard writes in a thread and passes an OSError on to the main thread, which reports it.
    """
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    The code is 0 for success, 2 for what cannot be done as asked, 1 for a run that failed, and 128 plus the signal for
    a command that a signal stopped: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    stop = StopAtOnce()
    try:
        with stop:
            code = app(arguments or ["--help"], prog_name="rmcla", standalone_mode=False) or 0
        # typer catches Ctrl-C, and `Stop` with it, and prints nothing
        return _stopped(stop) if code == 130 else code
    except KeyboardInterrupt as stopped:  # a signal at the very beginning or end
        return _stopped(stopped)
    except typer.Exit as error:
        return error.exit_code
    except USAGE_ERROR as error:
        return _print_error(error.format_message(), 2)
    except typer.Abort:
        return _print_error("stopped", 130)
    except UserError as error:
        return _print_error(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        return _print_error(_of_system(error), 2)
    except Exception as error:
        if memory := short_of_memory(error):
            return _print_error(f"{memory}; free some of it, or give another --device", 1)
        if stop.signal is None:
            raise
        return _stopped(stop)  # the signal came within a library, such as matplotlib, which made it an error of its own


def _of_system(error: OSError) -> str:
    """Return what the system refused, and the environment variable that names the file if there is one."""
    if not error.filename:
        return str(error)
    variables = [name for name, value in os.environ.items() if value == str(error.filename)]
    way_out = f"; set {variables[0]}, which names it, to another one" if variables else ""
    return f"{error.filename} cannot be used: {error.strerror}{way_out}"


def _stopped(by: StopAtOnce | KeyboardInterrupt) -> int:
    """Print which signal stopped the command, and return the exit code."""
    number = by.signal if isinstance(by, StopAtOnce) else by.number if isinstance(by, Stop) else None
    number = number or SIGINT
    return _print_error(f"stopped at once by {number.name}", 128 + number)


def _print_error(text: str, code: int) -> int:
    with suppress(OSError):  # the terminal is closed
        print(f"rmcla: {printable(text)}", file=sys.stderr)
    return code
