"""What the results of an evaluation depend on, and how several processes share the files that keep them."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rmcla_fast.evaluation.run import Run
from rmcla_fast.files import locked
from rmcla_fast.options import NOT_NEGATIVE, POSITIVE, fact

LOCK = ".evaluation.lock"


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on, except the attack."""

    which: str
    checkpoint_sha256: str
    images_sha256: str
    network: str
    precision: str
    images: int = fact(POSITIVE)
    epsilon: float = fact(POSITIVE)
    seed: int = fact(NOT_NEGATIVE)


def settings_of(run: Run, epsilon: float, seed: int, precision: str) -> Settings:
    return Settings(
        which=run.which,
        **run.identity,
        images=len(run.labels),
        epsilon=epsilon,
        seed=seed,
        precision=precision,
    )


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Hold the lock of the files that keep the results in the folder of `path`; another process is waited for."""
    with locked(path.parent / LOCK, waiting=f"another process writes {path}; waiting for it"):
        yield


def set_aside(path: Path, why: str, *, rename: bool) -> None:
    """Rename a file that cannot be believed, so that a new one can be written, or warn that this will be done."""
    if rename:
        with suppress(OSError):
            os.replace(path, _free_name(path))
    else:
        warnings.warn(
            f"{path} {why}; the attacks run again, and it is kept as {_free_name(path).name}",
            stacklevel=3,
        )


def _free_name(path: Path) -> Path:
    """Return the name under which a damaged file is kept; earlier ones keep theirs."""
    names = (path.with_suffix(f".damaged{'' if number == 1 else number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))
