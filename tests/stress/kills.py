"""Commands that are killed at random times and started again: they must end as if nothing had happened.

Training, packing, evaluating and reproducing are killed by SIGKILL, or asked to stop by SIGTERM or SIGINT, at times
within the duration of a whole command, so that start-up, work, writing and drawing are hit.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from children import Ended, rmcla
from differences import differences
from samples import EVALUATION, Samples, succeeded, train
from tally import Tally

from rmcla_fast import data, sealed
from rmcla_fast.data.cache import CACHE
from rmcla_fast.evaluation import per_image
from rmcla_fast.training import checkpoint
from rmcla_fast.training.metrics import METRICS, read_metrics

STOPS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Work(NamedTuple):
    """A command that is killed, the folder that it writes, and what must be the same in the end."""

    name: str
    command: tuple[object, ...]
    folder: Path
    content: Callable[[], Any]
    readable: Callable[[], object]


def run_content(folder: Path) -> dict[str, Any]:
    """Return everything that a run wrote and that must not depend on when it was killed."""
    content: dict[str, Any] = {
        name: dataclasses.asdict(checkpoint.read(folder / name)) for name in (checkpoint.LAST, checkpoint.BEST)
    }
    return {**content, METRICS: read_metrics(folder / METRICS), "curves.png": (folder / "curves.png").exists()}


def readable_checkpoints(folder: Path) -> None:
    for name in (checkpoint.LAST, checkpoint.BEST):
        if (folder / name).exists():
            checkpoint.read(folder / name)


def right_images(folder: Path) -> dict[str, Any]:
    """Return which images are right under each attack, as evaluation.npz says."""
    (found,) = per_image.read(folder / per_image.FILE)
    return found.right


def works(samples: Samples) -> Sequence[Work]:
    run, images, table = samples.root / "killed run", samples.root / "killed images", samples.root / "killed table"
    evaluated = samples.root / "killed evaluation"
    shutil.copytree(samples.data, images, ignore=shutil.ignore_patterns(CACHE))
    shutil.copytree(samples.finished, evaluated)
    record = evaluated / "evaluation.json"

    def start_again() -> None:
        for path in evaluated.glob("evaluation*"):
            path.unlink()

    start_again()
    reproduced = ("--data", "folder", "--data-dir", samples.data, "--model", "small-cnn", "--epochs", 1)
    return (
        Work("training", train(run, samples.data), run, lambda: run_content(run), lambda: readable_checkpoints(run)),
        Work(
            "packing",
            train(samples.root / "packed run", images, "--epochs", 1),
            images / CACHE,
            lambda: [data.load("folder", images).train.images, data.load("folder", images).test.images],
            lambda: None,
        ),
        Work(
            "evaluating",
            ("evaluate", evaluated, *EVALUATION),
            record,
            lambda: [sealed.load(record), right_images(evaluated)],
            lambda: [record.exists() and sealed.load(record), per_image.read(evaluated / per_image.FILE)],
        ),
        Work(
            "reproducing",
            ("reproduce", "table4", *reproduced, "--device", "cpu", "--out", table),
            table,
            lambda: json.loads((table / "table4-folder.json").read_text()),
            lambda: [readable_checkpoints(path) for path in table.glob("runs/*")],
        ),
    )


def kill(samples: Samples, count: int, seed: int) -> list[Tally]:
    """Kill commands `count` times in all, a quarter of the kills at each kind of work."""
    return [_kill(samples, work, -(-count // 4), random.Random(f"{seed} {work.name}")) for work in works(samples)]


def _kill(samples: Samples, work: Work, count: int, draw: random.Random) -> Tally:
    tally = Tally(f"a kill or a signal while {work.name}")
    whole = succeeded(rmcla(*work.command))
    expected = work.content()
    _remove(work, samples)
    kills = 0
    while kills < count:
        stop = draw.choice(STOPS)
        ended = rmcla(*work.command, signals=((draw.uniform(0, whole.seconds), stop),))
        if ended.code == 0:
            tally.seen["finished, the same to the bit"] += 1
            found = differences(expected, work.content())
            tally.silent += [f"differs in {', '.join(found[:5])}"] if found else []
            tally.lost += [f"left behind: {path.name}" for path in leftovers(work.folder)]
            _remove(work, samples)
            continue
        kills += 1
        _count(tally, ended, stop)
        try:
            work.readable()
        except Exception as error:
            tally.lost.append(f"after {stop.name}: {error}")
    ended = rmcla(*work.command)
    if ended.code:
        tally.lost.append(f"cannot go on: {ended.said}")
    else:
        tally.seen["finished, the same to the bit"] += 1
        found = differences(expected, work.content())
        tally.silent += [f"differs in {', '.join(found[:5])}"] if found else []
        tally.lost += [f"left behind: {path.name}" for path in leftovers(work.folder)]
    return tally


def _count(tally: Tally, ended: Ended, stop: int) -> None:
    if ended.crashed:
        tally.tracebacks.append(f"after {signal.Signals(stop).name}: {ended.said[-500:]}")
        tally.seen["traceback"] += 1
    elif ended.code == -stop:
        tally.seen[f"killed by {signal.Signals(stop).name}"] += 1
    elif ended.sentence and ended.code in (128 + stop, 130):
        tally.seen[f"one sentence after {signal.Signals(stop).name}, exit code {ended.code}"] += 1
    else:
        tally.seen[f"exit code {ended.code}"] += 1
        tally.silent.append(f"exit code {ended.code} after {signal.Signals(stop).name}: {ended.said[-500:]}")


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and locks that are left in the folder, or beside the file."""
    inside = folder if folder.is_dir() else folder.parent
    return [path for path in inside.rglob("*") if path.suffix == ".tmp" or path.name.endswith("lock")]


def _remove(work: Work, samples: Samples) -> None:
    if work.folder.is_dir():
        shutil.rmtree(work.folder)
    else:  # with evaluation.json goes what else an evaluation writes
        for path in work.folder.parent.glob(f"{work.folder.stem}.*"):
            path.unlink()
    shutil.rmtree(samples.root / "packed run", ignore_errors=True)
