"""The run folder: config.json, metrics.jsonl, TensorBoard events and checkpoints, which agree even after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rmcla_fast.errors import RunFailed, UserError, need
from rmcla_fast.files import replacing
from rmcla_fast.text import utf8_path
from rmcla_fast.training import checkpoint
from rmcla_fast.training.config import ResolvedConfig, TrainConfig, read_recorded, resolve, resumed

CONFIG, METRICS, CURVES = "config.json", "metrics.jsonl", "curves.png"


def open_run(asked: TrainConfig) -> tuple[ResolvedConfig, dict[str, Any] | None]:
    """Return the run's options and the checkpoint to go on from, or None at the start. Nothing is written.

    Raises:
        UserError: a folder that is not empty although `resume` is not set, a damaged checkpoint, or an option that
            differs from the recorded one.
    """
    config = resolve(asked) if asked.data is not None or not asked.resume else None
    if config is None and not asked.out:
        raise UserError("--resume needs the folder of the run; give --out")
    folder = Path(config.out if config else asked.out or "")
    if not folder.exists():
        if config is None:
            raise UserError(f"there is no run {folder} to resume; give --data to start it")
        return config, None
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; a folder is needed")
    if not asked.resume:
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; go on with --resume, or give another --out")
        return resolve(asked), None
    state = checkpoint.read(folder / checkpoint.LAST) if (folder / checkpoint.LAST).exists() else None
    if state is None and not (folder / CONFIG).exists():
        if config is None:
            raise UserError(f"{folder} holds no run to resume; give --data to start it")
        return config, None
    recorded = state["config"] if state else read_recorded(folder / CONFIG)
    return resolve(resumed(asked, {**recorded, "out": str(folder)})), state


class RunFolder:
    """The writer of a run's files. metrics.jsonl has one object for each logged step and one for each epoch."""

    def __init__(self, path: Path, config: dict[str, Any], step: int) -> None:
        """Open the folder at `step`. Lines of later steps, which a killed run logged, are removed."""
        self.path = path
        board = need("torch.utils.tensorboard", "train", "the record of a run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write(path / CONFIG, json.dumps(config, indent=2) + "\n")
            _cut(path / METRICS, step)
            self._metrics = (path / METRICS).open("a")
            self._opened = ExitStack()
            named = self._opened.enter_context(utf8_path(path))
            self._events = board.SummaryWriter(named, purge_step=step + 1 if step else None)
        except OSError as error:
            raise UserError(f"the run folder {path} cannot be written: {error.strerror}") from error

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl, and the numbers among `values` as events. `kind` is "step" or "epoch"."""
        with self._report_os_errors(METRICS):
            self._metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a metrics.jsonl, up to a line that a kill cut short."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _cut(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
    _write(path, "".join(json.dumps(row) + "\n" for row in kept))


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
