"""Links in a run folder: what they point to is read, and never written; a run's own file replaces the link."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_cases import SMALL, rmcla, small

from rmcla_fast.training import TrainConfig, checkpoint, train
from rmcla_fast.training.run_folder import RunFolder

pytest.importorskip("matplotlib", reason="pip install 'rmcla-fast[train]'")


def move_behind_links(run: Path, outside: Path) -> dict[Path, bytes]:
    """Move every file of the run out of its folder, put links in their places, and return what was moved."""
    outside.mkdir()
    for path in list(run.iterdir()):
        shutil.move(path, outside / path.name)
        path.symlink_to(outside / path.name)
    return {path: path.read_bytes() for path in outside.iterdir()}


def test_links_in_a_run_folder_are_read_and_never_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, save = tmp_path / "run", RunFolder.save

    def save_and_stop(self: RunFolder, state: dict[str, object], *, best: bool = False) -> None:
        save(self, state, best=best)
        if state["epoch"] == 1 and not best:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(small(run))
    monkeypatch.undo()
    moved = move_behind_links(run, tmp_path / "outside")
    train(TrainConfig(out=str(run), resume=True))
    assert checkpoint.read(run / "checkpoint.pt").epoch == SMALL.epochs
    assert {path: path.read_bytes() for path in (tmp_path / "outside").iterdir()} == moved
    for name in ("checkpoint.pt", "config.json", "metrics.jsonl", "curves.png"):
        assert not (run / name).is_symlink(), name

    command = ("evaluate", run, "--images", 20, "--attacks", "clean", "--gallery")
    assert rmcla(*command) == 0
    moved = move_behind_links(run, tmp_path / "again")
    assert rmcla(*command, "--fresh") == 0
    assert {path: path.read_bytes() for path in (tmp_path / "again").iterdir()} == moved
    assert (run / "checkpoint.pt").is_symlink()
    for name in ("evaluation.json", "evaluation.png", "gallery.png"):
        assert not (run / name).is_symlink(), name
    capsys.readouterr()


def test_a_run_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    train(small(tmp_path / "run", epochs=1))
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "disk" / "checkpoint.pt").exists()
