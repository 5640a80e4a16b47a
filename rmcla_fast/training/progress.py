"""The progress of a run: a bar with rate, time left, loss and accuracies, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from rmcla_fast import text
from rmcla_fast.errors import need
from rmcla_fast.training.monitor import Measured

Item = TypeVar("Item")


class Display:
    """A progress bar on stderr, or a line for each measured epoch if there is no terminal; nothing if `quiet`."""

    def __init__(self, total_steps: int, step: int, *, quiet: bool = False) -> None:
        progress = need("rich.progress", "train", "the progress bar")
        self._console = text.new_console(stderr=True, quiet=quiet)
        self._bar = progress.Progress(
            progress.TextColumn("{task.fields[epoch]}"),
            progress.BarColumn(bar_width=None),
            progress.TimeRemainingColumn(elapsed_when_finished=True, compact=True),
            progress.TextColumn("{task.fields[status]}"),  # 55 characters: a line of 80 holds it and epoch 200/200
            expand=True,
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=step, epoch="-", status="")
        self._accuracies = ""
        self._rate = ""

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # the terminal is closed, which must not keep the run from its checkpoint
            self._bar.stop()

    def update(self, step: int, epoch: str, loss: float, images_per_second: float) -> None:
        """Show the figures of a logged step."""
        self._rate = f" {images_per_second:,.0f} img/s"
        self._bar.update(self._task, completed=step, epoch=epoch, status=self._status(loss))

    def measured(self, step: int, epoch: str, loss: float, found: Measured, seconds_left: float) -> None:
        """Show the accuracies of a measured epoch, and its mean loss. The bar has no room for those of the weights."""
        seen, of_weights = found.seen, found.of_weights
        self._accuracies = f" clean {seen.clean:.1f} FGSM {seen.fgsm:.1f} PGD {seen.pgd:.1f} %"
        self._bar.update(self._task, completed=step, epoch=epoch, status=self._status(loss))
        if not self._console.is_terminal:
            beside = "" if of_weights is None else f" (average; PGD {of_weights.pgd:.1f} % without averaging)"
            self.say(f"epoch {epoch} {self._status(loss)}{beside} {seconds_left:.0f} s left")

    def _status(self, loss: float) -> str:
        return f"loss {loss:.3f}{self._rate}{self._accuracies}"

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        with suppress(OSError):
            text.say(self._console, line)


def say(line: str, *, quiet: bool) -> None:
    """Print a line on stderr."""
    text.say(text.new_console(stderr=True, quiet=quiet), line)


def shown(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items, such as the files of a data set that is being decoded, with a progress bar on stderr."""
    progress = need("rich.progress", "train", "the progress bar")
    yield from progress.track(items, description=what, console=text.new_console(stderr=True))
