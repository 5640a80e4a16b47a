"""The progress of an evaluation on stderr: one bar for each attack, with the time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rmcla_fast import text
from rmcla_fast.errors import need


class Bars:
    """Progress bars. Pass an instance as `progress` to `evaluate`, which calls it with (attack, fraction done)."""

    def __init__(self, prefix: str = "", *, quiet: bool = False) -> None:
        progress = need("rich.progress", "train", "the progress bar")
        self._prefix = prefix
        self._console = text.new_console(stderr=True, quiet=quiet)
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._done: set[str] = set()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, attack: str, fraction: float) -> None:
        if attack not in self._tasks:
            self._tasks[attack] = self._bars.add_task(text.printable(f"{self._prefix}{attack}"), total=1.0)
        self._bars.update(self._tasks[attack], completed=min(1.0, fraction))
        # Bars are not drawn in a log file, so it gets a line.
        if fraction >= 1 and attack not in self._done and not self._console.is_terminal:
            self._done.add(attack)
            self.say(f"{self._prefix}{attack} done")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        text.say(self._console, line)
