"""The run folder: config.json, metrics.jsonl, TensorBoard events and checkpoints, which agree even after a kill."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from rmcla_fast import sealed
from rmcla_fast.errors import RunFailed, UserError, need
from rmcla_fast.files import Busy, is_left_behind, locked, remove_left_behind, replacing
from rmcla_fast.text import utf8_path
from rmcla_fast.training import checkpoint
from rmcla_fast.training.config import ResolvedConfig, TrainConfig
from rmcla_fast.training.metrics import METRICS, as_line, cut
from rmcla_fast.training.record import CONFIG, RunRecord, read_config
from rmcla_fast.training.resolve import resolve, resumed

CURVES, LOCK = "curves.png", ".lock"


def run_path(asked: TrainConfig) -> Path:
    """Return the path of the run folder that was asked for.

    Raises:
        UserError: there is no run to resume, and no data set to start one with, or the options are not valid.
    """
    if asked.data is not None or not asked.resume:
        return Path(resolve(asked).out)
    if not asked.out:
        raise UserError("--resume needs the folder of the run; give --out")
    folder = Path(asked.out)
    if not folder.exists():
        raise UserError(f"there is no run {folder} to resume; give --data to start it")
    return folder


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of the run folder, which is created; it is removed again if nothing was written into it.

    Raises:
        UserError: another process is writing into the folder.
    """
    try:
        with locked(folder / LOCK):
            remove_left_behind(folder)
            yield
    except Busy as error:
        raise UserError(
            f"another process is writing the run {folder}; wait for it to end, or give another --out"
        ) from error


def open_run(folder: Path, asked: TrainConfig) -> tuple[ResolvedConfig, checkpoint.Opened | None]:
    """Return the run's options and the checkpoint to go on from, or None at the start. Nothing is written.

    Raises:
        UserError: a folder that is not empty although `resume` is not set, a damaged checkpoint, or an option that
            differs from the recorded one.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; a folder is needed")
    if not asked.resume:
        if folder.exists() and any(entry.name != LOCK and not is_left_behind(entry) for entry in folder.iterdir()):
            raise UserError(f"{folder} is not empty; go on with --resume, or give another --out")
        return resolve(asked), None
    opened, record = None, None
    # The first best.pt is written before the first checkpoint.pt, with the same content, and a run may be killed in
    # between. Without this, a run that has lost its checkpoint.pt would also begin anew, and overwrite its files.
    found = [folder / name for name in (checkpoint.LAST, checkpoint.BEST) if (folder / name).exists()]
    if found:
        opened = checkpoint.open_file(found[0])
        record = opened.record
    elif (folder / CONFIG).exists():
        record = read_config(folder / CONFIG)
    if record is not None:
        before = dataclasses.replace(record.options, out=str(folder))
        return resolve(resumed(asked, before)), opened
    if asked.data is None:
        raise UserError(f"{folder} holds no run to resume; give --data to start it")
    return resolve(asked), None


class RunFolder:
    """The writer of a run's files. metrics.jsonl has one object for each logged step and one for each epoch."""

    def __init__(self, path: Path, record: RunRecord, step: int) -> None:
        """Open the folder at `step`. Lines of later steps, which a killed run logged, are removed."""
        self.path = path
        board = need("torch.utils.tensorboard", "train", "the record of a run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with replacing(path / CONFIG) as file:
                file.write(sealed.dumps(record.as_json()))
            cut(path / METRICS, step)
            self._metrics = _open_to_append(path / METRICS)
            self._opened = ExitStack()
            named = self._opened.enter_context(utf8_path(path))
            self._events = board.SummaryWriter(named, purge_step=step + 1 if step else None)
        except OSError as error:
            raise UserError(f"the run folder {path} cannot be written: {error.strerror}") from error

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl, and the numbers among `values` as events. `kind` is "step" or "epoch"."""
        with self._report_os_errors(METRICS):
            self._metrics.write(as_line({"kind": kind, "step": step, **values}))
            self._metrics.flush()
        with self._report_os_errors("the TensorBoard events"):
            for name, value in values.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Write the checkpoint, after the metrics and events that belong to it are on disk."""
        with self._report_os_errors("the record of the run"):
            os.fsync(self._metrics.fileno())
            self._events.flush()
        checkpoint.save(self.path / (checkpoint.BEST if best else checkpoint.LAST), state)

    def close(self) -> None:
        with self._report_os_errors("the record of the run"):
            self._metrics.close()
            self._events.close()
            self._opened.close()

    @contextmanager
    def _report_os_errors(self, what: str) -> Iterator[None]:
        """Raise an error of the system, such as a full disk, as a RunFailed of one sentence."""
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"{what} in {self.path} could not be written ({error.strerror}); --resume goes on"
            ) from error


def _open_to_append(path: Path) -> TextIO:
    """Open a file to append to it, but not through a link, which may have been planted and point out of the folder."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "a")
