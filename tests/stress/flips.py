"""Flipped bits in every kind of file that is read back: each must be refused, healed, or without any effect."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from children import rmcla
from samples import Samples
from tally import Tally

from rmcla_fast import data
from rmcla_fast.data.cache import CACHE
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import per_image
from rmcla_fast.evaluation.results import known_results
from rmcla_fast.evaluation.run import open_run
from rmcla_fast.training import TrainConfig, checkpoint, run_folder
from rmcla_fast.training.metrics import METRICS, read_metrics
from rmcla_fast.training.record import CONFIG


class Kind(NamedTuple):
    """A kind of file. `read` returns what is read back, and `healed` whether a warning and this result are right."""

    name: str
    path: Path
    read: Callable[[], Any]
    healed: Callable[[Any, Any], bool]
    outcome: str = ""


def kinds(samples: Samples) -> Iterator[Kind]:
    """Yield each kind of file, with a copy of its run prepared for it."""
    run = samples.copy(samples.finished)
    for name in (checkpoint.LAST, checkpoint.BEST):
        path = run / name
        yield Kind(name, path, lambda path=path: vars(checkpoint.read(path)), lambda *_: False)

    images = samples.root / "flipped images"
    shutil.copytree(samples.data, images, copy_function=shutil.copy2)
    shutil.rmtree(images / CACHE, ignore_errors=True)
    data.load("folder", images)
    for pattern, what in (("train*.images", "packed cache"), ("size*.json", "the cache's size of all images")):
        (path,) = (images / CACHE).glob(pattern)
        yield Kind(what, path, lambda: data.load("folder", images).train.images.clone(), equal, "packed again")

    opened = open_run(run, images=40, device="cpu")
    yield Kind(
        "evaluation.json",
        run / "evaluation.json",
        lambda: {name: result.as_json() for name, result in known_results(opened, opened.epsilon, 0).items()},
        lambda found, expected: not found,
        "attacked again",
    )
    yield Kind(
        per_image.FILE,
        run / per_image.FILE,
        lambda: per_image.read(run / per_image.FILE),
        lambda found, expected: not found,
        "attacked again",
    )
    yield Kind(METRICS, run / METRICS, lambda: read_metrics(run / METRICS), is_part, "lines left out")
    for name in (checkpoint.LAST, checkpoint.BEST):
        (run / name).unlink()
    asked = TrainConfig(out=str(run), resume=True)
    yield Kind(CONFIG, run / CONFIG, lambda: run_folder.open_run(run, asked), lambda *_: False)


def is_part(found: list[Any], expected: list[Any]) -> bool:
    return len(expected) - 2 <= len(found) and all(row in expected for row in found)


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], expected[key]) for key in expected)
    if hasattr(expected, "__dataclass_fields__"):
        return equal(vars(found), vars(expected))
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(found == expected)


def flip(samples: Samples, count: int, seed: int) -> list[Tally]:
    """Flip one bit in each of `count` copies of each kind of file, and read it back."""
    return [_flip(kind, count, random.Random(f"{seed} {kind.name}")) for kind in kinds(samples)]


def _flip(kind: Kind, count: int, draw: random.Random) -> Tally:
    tally = Tally(f"a flipped bit in {kind.name}")
    whole, expected = kind.path.read_bytes(), kind.read()
    for _ in range(count):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        kind.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        where = f"bit {bit} of byte {place}"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = kind.read()
            except UserError:
                tally.seen["refused in a sentence"] += 1
                continue
            except Exception as error:
                tally.seen["traceback"] += 1
                tally.tracebacks.append(f"{where}: {type(error).__name__}: {error}")
                continue
            finally:
                kind.path.write_bytes(whole)
        if said and kind.healed(found, expected):
            tally.seen[f"a warning, {kind.outcome}"] += 1
        elif equal(found, expected):
            tally.seen["no effect"] += 1
        else:
            tally.seen["read as if it were right"] += 1
            tally.silent.append(where)
    return tally


def truncate(samples: Samples, count: int, seed: int) -> list[Tally]:
    """Cut the packed cache short, and read every page of what is loaded in a child, which a signal would kill."""
    tally, draw = Tally("a packed cache cut short"), random.Random(seed)
    (path,) = (samples.data / CACHE).glob("test*.images")
    whole = path.read_bytes()
    for _ in range(count):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        ended = rmcla("evaluate", samples.finished, "--attacks", "clean", "--device", "cpu")
        if ended.crashed or ended.code < 0:
            tally.tracebacks.append(ended.said)
        tally.seen["a warning, packed again" if "it is packed again" in ended.said else f"code {ended.code}"] += 1
        if path.read_bytes() != whole:
            tally.silent.append(f"cut to {path.stat().st_size}")
    return [tally]
