"""A run folder, a cache and a table have one writer, and what a killed writer left behind is removed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from data_files import write_image
from run_cases import python, read_checkpoint, rmcla, small

from rmcla_fast import data
from rmcla_fast.data.cache import CACHE
from rmcla_fast.errors import UserError
from rmcla_fast.files import Busy, locked, replacing
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.run_folder import LOCK

HOLD = """
import sys, time
from pathlib import Path
from rmcla_fast.files import locked, replacing
path = Path(sys.argv[2])
with locked(path) if sys.argv[1] == "lock" else replacing(path) as file:
    if file:
        file.write(b"half")
        file.flush()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def hold(what: str, path: Path, holders: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start a process that holds a lock, or that has half written a file."""
    process = python("-c", HOLD, what, path)
    holders.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lock_has_one_holder_and_is_free_after_its_death(
    tmp_path: Path, holders: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "folder" / "lock"
    process = hold("lock", path, holders)
    with pytest.raises(Busy), locked(path):
        pytest.fail("two processes hold the lock")
    kill(process)
    assert path.exists()
    with locked(path), pytest.raises(Busy), locked(path):
        pytest.fail("the lock is held twice")
    assert not path.exists()


def test_one_waits_for_the_holder_where_that_is_asked_for(tmp_path: Path, holders: list[subprocess.Popen[str]]) -> None:
    process = hold("lock", tmp_path / "lock", holders)
    waits = python(
        "-c",
        "import sys\nfrom pathlib import Path\nfrom rmcla_fast.files import locked\n"
        "with locked(Path(sys.argv[1]), waiting='waiting for it'):\n    print('mine')",
        tmp_path / "lock",
    )
    holders.append(waits)
    assert waits.stderr is not None
    assert "waiting for it" in waits.stderr.readline()
    assert waits.poll() is None
    kill(process)
    assert waits.communicate()[0] == "mine\n"


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker of a data loader may outlive the killed process that it was forked from."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom rmcla_fast.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = os.fork()\n    print(child or '', flush=True)\n    time.sleep(60)"
    )
    process = python("-c", code, tmp_path / "lock")
    assert process.stdout is not None
    child = int("".join(process.stdout.readline().strip() or process.stdout.readline().strip()))
    try:
        process.kill()
        process.wait()
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_link_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with locked(tmp_path / "lock"):
        assert not (tmp_path / "elsewhere").exists()


def test_a_lock_is_held_although_another_process_removes_the_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, make = tmp_path / "folder" / "lock", Path.mkdir

    def make_and_lose(folder: Path, **how: bool) -> None:
        monkeypatch.setattr(Path, "mkdir", make)
        folder.mkdir(**how)
        folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with locked(path), pytest.raises(Busy), locked(path):
        pytest.fail("the lock is held twice")
    assert not path.parent.exists()


def test_the_lock_of_another_user_is_respected(
    tmp_path: Path, holders: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another user in a shared folder can often be read but not written; root could write it."""
    process, opened = hold("lock", tmp_path / "lock", holders), os.open

    def only_readable(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", only_readable)
    with pytest.raises(Busy), locked(tmp_path / "lock"):
        pytest.fail("two users hold the lock")
    kill(process)
    with locked(tmp_path / "lock"), pytest.raises(Busy), locked(tmp_path / "lock"):
        pytest.fail("the lock is held twice")


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path, holders: list[subprocess.Popen[str]]
) -> None:
    killed, living = (hold("write", tmp_path / "file", holders) for _ in range(2))
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 2
    kill(killed)
    other = ".file.0123456789abcdef.tmp"  # no name of ours
    (tmp_path / other).write_text("")
    with replacing(tmp_path / "file") as file:
        file.write(b"whole")
    kept = {path.name for path in tmp_path.iterdir()} - {"file", other}
    assert len(kept) == 1
    assert kept < names
    kill(living)
    with replacing(tmp_path / "another") as file:
        file.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "another", other}


def test_a_name_as_long_as_a_file_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    with replacing(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path: Path, holders: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    process = hold("lock", out / LOCK, holders)
    for resume in ((), ("--resume",)):
        assert rmcla("train", "--data", "digits", "--out", out, *resume) == 2
        assert f"rmcla: another process is writing the run {out}; wait for it to end" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [LOCK]
    kill(process)
    train(small(out, epochs=1))  # what the killed process left does not count
    assert read_checkpoint(out / "checkpoint.pt")["epoch"] == 1
    assert not (out / LOCK).exists()


def test_a_process_on_its_own_holds_the_lock_whatever_rank_its_environment_names(
    tmp_path: Path, holders: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")  # without WORLD_SIZE, as in the environment of another program
    hold("lock", tmp_path / "run" / LOCK, holders)
    with pytest.raises(UserError, match="another process is writing the run"):
        train(small(tmp_path / "run", epochs=1))


def test_two_runs_in_one_folder_end_as_one(tmp_path: Path) -> None:
    command = ("-m", "rmcla_fast.cli", "train", "--data", "digits", "--images-per-class", "20", "--epochs", "2")
    options = ("--device", "cpu", "--log-every", "1", "--quiet", "--resume")
    train(small(tmp_path / "whole", log_every=1))
    both = [python(*command, *options, "--out", tmp_path / "run") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    # One may also have begun after the other had ended.
    assert sorted(codes) in ([0, 2], [0, 0]), said
    if 2 in codes:
        assert "another process is writing the run" in said[codes.index(2)]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in whole]


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe"):
        train(small(tmp_path / "new" / "run", recipe="r-mc-lb"))
    assert not (tmp_path / "new").exists()


def test_a_table_that_cannot_be_made_leaves_no_folder(tmp_path: Path) -> None:
    assert rmcla("reproduce", "recipes", "--data", "cifar10", "--no-autoattack", "--out", tmp_path / "new" / "out") == 2
    assert not (tmp_path / "new").exists()


def test_a_finished_run_that_cannot_be_written_is_finished(tmp_path: Path) -> None:
    out = train(small(tmp_path / "run", epochs=1))
    out.chmod(0o500)
    try:
        assert train(TrainConfig(out=str(out), resume=True)) == out
    finally:
        out.chmod(0o700)


def test_a_second_reproduction_of_a_table_is_refused(
    tmp_path: Path, holders: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    hold("lock", tmp_path / ".table2-digits.md.lock", holders)
    command = ("reproduce", "table2", "--data", "digits", "--epochs", 1, "--no-autoattack", "--out", tmp_path)
    assert rmcla(*command) == 2
    assert f"another process is making {tmp_path / 'table2-digits.md'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".table2-digits.md.lock"]


def test_two_processes_pack_a_cache_once(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
    for split in ("train", "test"):
        for name in ("a", "b"):
            for row in range(3):
                write_image(tmp_path / split / name / f"{row}.png", 10 * row)
    code = (
        "import sys, time\nfrom rmcla_fast import data\nfrom rmcla_fast.data import folder\n"
        "decode = folder.decode\n"
        "def slow(*arguments):\n    time.sleep(0.3)\n    print('decoded')\n    return decode(*arguments)\n"
        "folder.decode = slow\n"
        "data.load('folder', sys.argv[1])"
    )
    began = time.monotonic()
    both = [python("-c", code, tmp_path) for _ in range(3)]
    printed = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], printed
    assert sum(out.count("decoded") for out, _ in printed) == 12
    assert time.monotonic() - began < 120
    assert data.load("folder", tmp_path).train.images.shape[0] == 6
    assert {path.suffix for path in (tmp_path / CACHE).iterdir()} == {".images", ".json"}


def test_a_killed_packer_leaves_nothing_that_the_next_one_keeps(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="pip install 'rmcla-fast[train]'")
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_image(tmp_path / split / name / "0.png", 3)
    code = (
        "import os, signal, sys\nfrom rmcla_fast import data\nfrom rmcla_fast.data import folder\n"
        "folder.decode = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "data.load('folder', sys.argv[1])"
    )
    process = python("-c", code, tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path for path in (tmp_path / CACHE).iterdir() if path.suffix == ".tmp"]
    images = data.load("folder", tmp_path).train.images
    assert torch.equal(images[0], images[1])
    assert {path.suffix for path in (tmp_path / CACHE).iterdir()} == {".images", ".json"}
