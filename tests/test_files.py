"""Atomic writes: if a write fails, the old content stays and no temporary file is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import plots
from rmcla_fast.evaluation.report import write_json
from rmcla_fast.files import replacing
from rmcla_fast.training import checkpoint

resource = pytest.importorskip("resource", reason="limits on a process's files are POSIX")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Limit files to `size` bytes, so that a longer write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_plot(path: Path) -> Path:
    figure = plots.new_figure(2, 2)
    figure.subplots()
    return plots.save(figure, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, ["x" * 1000] * 100),
        lambda path: checkpoint.save(path, {"weights": torch.zeros(100_000)}),
        save_plot,
    ],
    ids=["json", "checkpoint", "plot"],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with room_for(1000), pytest.raises(UserError, match=r"file .*written.*File too large"):
        write(target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}
    write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.stat().st_size > 1000


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_json(Path("/dev/stdout"), [1])
    assert capfd.readouterr().out == "[\n  1\n]\n"
    os.mkfifo(tmp_path / "pipe")  # in a run folder, a pipe would be waited for without end
    write_json(tmp_path / "pipe", [2])
    assert (tmp_path / "pipe").read_text() == "[\n  2\n]\n"
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        write_json(tmp_path, [1])


@pytest.mark.parametrize("target", ["file", "missing", "folder", os.devnull])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    write_json(tmp_path / "link", [1])
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "[\n  1\n]\n"
    assert (tmp_path / "file").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
