"""metrics.jsonl: damaged lines are noticed, are left out where they are read, and cost no other line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rmcla_fast.errors import UserError
from rmcla_fast.training.metrics import as_line, cut, read_metrics

ROWS: list[dict[str, Any]] = [
    {"kind": "step", "step": 2, "epoch": 1, "loss": 0.1, "lr": 0.1, "images_per_second": 1e3},
    {"kind": "step", "step": 4, "epoch": 1, "loss": 1 / 3, "lr": 1e-30, "images_per_second": 7.5},
    {"kind": "epoch", "step": 5, "epoch": 1, "loss": 2, "lr": 0, "clean": 100.0, "fgsm": 3.5, "pgd": 0, "seconds": 1.5},
    {"kind": "step", "step": 6, "epoch": 2, "loss": -1.0, "lr": 0.1, "images_per_second": 1.0},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(as_line, ROWS)))
    return path


def test_rows_are_read_as_they_were_written(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert read_metrics(path) == ROWS
    assert json.loads(path.read_text().splitlines()[0]).keys() - {"crc32"} == ROWS[0].keys()
    assert read_metrics(path.with_name("none")) == []
    assert not recwarn.list


DAMAGED = [
    b"",
    b"\xff\xfe",
    b"5",
    b"[]",
    b"null",
    b"[" * 100_000,
    as_line(ROWS[1]).replace("0.333", "0.334").encode().rstrip(),
    json.dumps(ROWS[1]).encode(),
    *(
        as_line({**ROWS[1], **change}).encode().rstrip()
        for change in (
            {"step": -4},
            {"step": 0},
            {"step": "4"},
            {"step": None},
            {"step": 10**30},
            {"kind": "other"},
            {"kind": []},
            {"epoch": 1.5},
            {"loss": float("nan")},
            {"loss": float("inf")},
            {"loss": 10**400},
            {"loss": True},
            {"pgd": 101},
            {"pgd": -1},
            {"seconds": -1},
            {"overfitting": 1},
        )
    ),
    as_line({name: value for name, value in ROWS[1].items() if name != "lr"}).encode().rstrip(),
]


@pytest.mark.parametrize("damaged", DAMAGED[1:], ids=lambda line: line[:80].decode("latin1"))
def test_a_damaged_line_is_left_out_with_a_warning_and_stays_in_the_file(path: Path, damaged: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[1] = damaged
    path.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match="1 of 4 lines of .* cannot be used, since they are damaged"):
        assert read_metrics(path) == [ROWS[0], *ROWS[2:]]
    cut(path, 5)
    assert path.read_bytes() == b"\n".join([*lines[:3], b""])


def test_a_last_line_that_was_cut_short_is_dropped(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match="the last line of .* was cut short and is not used"):
        assert read_metrics(path) == ROWS[:3]
    with pytest.warns(UserWarning, match="cut short"):
        cut(path, 6)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    path.write_bytes(whole[:-1])  # only its newline is missing
    cut(path, 6)
    assert path.read_bytes() == whole


def test_rows_after_the_checkpoint_are_removed(path: Path) -> None:
    cut(path, 4)
    assert read_metrics(path) == ROWS[:2]
    cut(path, 0)
    assert path.read_bytes() == b""
    cut(path.with_name("none"), 3)
    assert not path.with_name("none").exists()


def test_what_is_no_file_is_refused_and_not_waited_for(path: Path) -> None:
    for make in (lambda: os.mkfifo(path), path.mkdir):
        path.unlink()
        make()
        with pytest.raises(UserError, match=r"metrics\.jsonl is not a file; remove it"):
            read_metrics(path)
        if path.is_dir():
            path.rmdir()
            path.touch()
