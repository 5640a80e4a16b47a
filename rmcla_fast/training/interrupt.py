"""The signals that stop a command: Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which a closed terminal sends.

A run finishes its update and writes a checkpoint before it stops; everything else stops at once. In both cases the
earlier handlers are back when a second signal comes, which therefore stops a run at once and ends anything else.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from rmcla_fast.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop(KeyboardInterrupt):
    """A signal that stops a command at once, where it is."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class StopRequest:
    """A request to stop: inside `with StopRequest() as stop:`, `stop.signal` is the signal that came, or None.

    A signal that the process ignores, as `nohup` makes it ignore SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in STOPPING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None is a handler that is not Python's
                    self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}


class StopAtOnce(StopRequest):
    """A signal raises `Stop` in the main thread, so that files that are being written are closed or removed."""

    def _received(self, number: int, frame: FrameType | None) -> None:
        super()._received(number, frame)
        raise Stop(signal.Signals(number))


def interrupted(stop: KeyboardInterrupt, kept: str) -> Interrupted:
    """Return the error of a command that was stopped at once; `kept` says what is left and how to go on."""
    number = stop.number if isinstance(stop, Stop) else signal.SIGINT
    return Interrupted(f"stopped by {number.name}; {kept}", number)
