"""metrics.jsonl: one JSON object in a line for each logged step and for each epoch of a run."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmcla_fast.errors import UserError
from rmcla_fast.files import replacing
from rmcla_fast.options import AT_LEAST_1, FINITE, NOT_NEGATIVE, PERCENT, fact, one_of
from rmcla_fast.schema import Mismatch, read_as
from rmcla_fast.sealed import parse_object

METRICS = "metrics.jsonl"
CHECKSUM = "crc32"


@dataclass(frozen=True)
class Row:
    """What a line holds. An epoch that measured the held-out images has their accuracies in %."""

    kind: str = fact(one_of(("step", "epoch")))
    step: int = fact(AT_LEAST_1)
    epoch: int = fact(AT_LEAST_1)
    loss: float = fact(FINITE)
    lr: float = fact(FINITE)
    images_per_second: float | None = fact(NOT_NEGATIVE, None)
    seconds: float | None = fact(NOT_NEGATIVE, None)
    skipped: int | None = fact(NOT_NEGATIVE, None)
    memory_gib: float | None = fact(NOT_NEGATIVE, None)  # the most that torch has allocated on the GPU since the start
    clean: float | None = fact(PERCENT, None)
    fgsm: float | None = fact(PERCENT, None)
    pgd: float | None = fact(PERCENT, None)
    overfitting: bool | None = None
    weights_clean: float | None = fact(PERCENT, None)  # of the weights, where the others are those of their average
    weights_fgsm: float | None = fact(PERCENT, None)
    weights_pgd: float | None = fact(PERCENT, None)


def as_line(row: dict[str, Any]) -> str:
    """Return a row as a line that ends with a checksum of its values."""
    return json.dumps({**row, CHECKSUM: _checksum(row)}) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, as `Row` declares them; none if the file does not exist.

    Damaged lines, and a last line that a kill cut short, are left out with a warning.

    Raises:
        UserError: the file cannot be read.
    """
    lines = [row for _, row in _lines(path)]
    rows = [row for row in lines if row is not None]
    if len(rows) < len(lines):
        damaged = f"{len(lines) - len(rows)} of {len(lines)} lines"
        warnings.warn(f"{damaged} of {path} cannot be used, since they are damaged", stacklevel=2)
    return rows


def cut(path: Path, step: int) -> None:
    """Remove the rows of the steps after `step`, which a killed run logged, and a last line that was cut short.

    Damaged lines stay in the file as they are.

    Raises:
        UserError, OSError: the file cannot be read or written.
    """
    kept = [line for line, row in _lines(path) if row is None or row["step"] <= step]
    if path.exists():
        with replacing(path) as file:
            file.writelines(line + b"\n" for line in kept)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line of the file with its row, or with None if it is damaged; not a last line that was cut short."""
    if not path.exists():
        return
    if not path.is_file():  # a pipe would be waited for without end
        raise UserError(f"{path} is not a file; remove it")
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    yield from ((line, _row(line)) for line in whole if line.strip())
    if (row := _row(last)) is not None:
        yield last, row
    elif last:
        warnings.warn(f"the last line of {path} was cut short and is not used", stacklevel=3)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the row in a line; None if the line is damaged."""
    row = parse_object(line)
    if row is None or row.pop(CHECKSUM, None) != _checksum(row):
        return None
    try:
        read_as(Row, row)
    except Mismatch:
        return None
    return row


def _checksum(row: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(row).encode()):08x}"
