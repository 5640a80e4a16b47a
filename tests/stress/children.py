"""Commands in forked processes, which start in milliseconds and can be killed, stopped, limited and watched.

The process that forks must not have run a backward pass, since autograd's threads do not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import PIL.Image
import rich.progress  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

from rmcla_fast import cli
from rmcla_fast.evaluation import run

PIL.Image.init()
CRASHED = 99  # the exit code of a child that ended in an exception


class Ended(NamedTuple):
    """How a child ended: its exit code (minus the signal that killed it), what it printed on stderr, and its seconds.

    `timed_out` says that it was killed because it took longer than it may.
    """

    code: int
    said: str
    seconds: float
    timed_out: bool

    @property
    def crashed(self) -> bool:
        return self.code == CRASHED or "Traceback" in self.said or self.code in (-signal.SIGSEGV, -signal.SIGBUS)

    @property
    def sentence(self) -> str:
        """Return the error that the command printed, without its beginning; "" if there is none."""
        last = (self.said.strip().splitlines() or [""])[-1]
        return last.removeprefix("rmcla: ") if last.startswith("rmcla: ") and not self.crashed else ""


def rmcla(
    *arguments: object,
    signals: tuple[tuple[float, int], ...] = (),
    prepare: Callable[[], None] | None = None,
    seconds: float = 300,
) -> Ended:
    """Run the command line in a child.

    Args:
        arguments: of the command.
        signals: (seconds after the start, signal) to send.
        prepare: called in the child first, for example to limit it.
        seconds: how long it may take.
    """
    return wait(start(lambda: command(*arguments), prepare), signals, seconds)


def command(*arguments: object) -> int:
    """Run the command line in this process as a shell would start it, and return its exit code."""
    sys.argv = ["rmcla", *map(str, arguments)]
    run.load_data.cache_clear()  # the parent may have filled it
    run._test_images.cache_clear()
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


class Child(NamedTuple):
    pid: int
    errors: int
    began: float


def start(work: Callable[[], int | None], prepare: Callable[[], None] | None = None) -> Child:
    """Start a child that does `work`, which returns its exit code."""
    errors, path = tempfile.mkstemp()
    os.unlink(path)
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.perf_counter()
    pid = os.fork()
    if pid:
        return Child(pid, errors, began)
    code = CRASHED
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prepare is not None:
            prepare()
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: Child, signals: tuple[tuple[float, int], ...] = (), seconds: float = 300) -> Ended:
    """Send the signals at their times, and return how the child ended."""
    due, timed_out = sorted(signals), False
    while True:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            break
        passed = time.perf_counter() - child.began
        while due and passed >= due[0][0]:
            os.kill(child.pid, due.pop(0)[1])
        if passed > seconds and not timed_out:
            timed_out = True
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.002)
    passed = time.perf_counter() - child.began
    with os.fdopen(child.errors, "r", errors="backslashreplace") as file:
        file.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), file.read(), passed, timed_out)
