"""Disks that are full or read-only: a command ends in one sentence, keeps what there was, and goes on afterwards."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from children import Ended, rmcla
from kills import differences, leftovers, run_content
from samples import EVALUATION, Samples, train
from tally import Tally

from rmcla_fast.data.cache import CACHE

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
PRIVATE = (1 << 18) | (1 << 14)  # MS_PRIVATE | MS_REC
NOBODY = 65534


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Put a file system of `size` bytes at `folder`; raise PermissionError without the right to mount one."""
    folder.mkdir(exist_ok=True)
    if libc().mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()):
        raise PermissionError("no right to mount a file system")
    try:
        yield
    finally:
        libc().umount2(str(folder).encode(), 2)


def can_mount() -> bool:
    """Return whether this process may mount file systems, in a space of mounts of its own."""
    return os.geteuid() == 0 and not libc().unshare(NEW_MOUNTS) and not libc().mount(None, b"/", None, PRIVATE, None)


def fill(samples: Samples, count: int, seed: int) -> list[Tally]:
    """Train, evaluate and pack on disks of `count` sizes, none of which is large enough, and go on with more room."""
    tally = Tally("a full disk")
    if not can_mount():
        tally.seen["not run: no right to mount a small file system"] += 1
        return [tally]
    disk, draw = samples.root / "disk", random.Random(seed)
    expected = run_content(samples.finished)
    needed = sum(path.stat().st_size for path in samples.finished.iterdir())
    for number in range(count):
        packing = number % 4 == 3
        size = 4 << 20 if packing else int(draw.uniform(0.02, 1.1) * needed)
        with small_disk(disk, size):
            out, data, cache = disk / "run", samples.data, samples.data / CACHE
            if packing:  # the data set is on the small disk, and its cache does not fit
                data = disk / "images"
                shutil.copytree(samples.data, data, ignore=shutil.ignore_patterns(CACHE))
                left = shutil.disk_usage(disk).free - draw.randrange(1, 9) * 4096
                (disk / "ballast").write_bytes(b"\0" * left)
                out, cache = samples.root / "full run", data / CACHE
                shutil.rmtree(out, ignore_errors=True)
            _check(tally, rmcla(*train(out, data)), f"{size} bytes")
            tally.lost += [f"{size} bytes: left behind {path.name}" for path in (*leftovers(disk), *leftovers(cache))]
            (disk / "ballast").unlink(missing_ok=True)
            libc().mount(None, str(disk).encode(), None, 32, f"size={20 * needed}".encode())  # MS_REMOUNT
            ended = rmcla(*train(out, data))
            if ended.code or differences(expected, run_content(out)):
                tally.lost.append(f"{size} bytes: with more room, exit code {ended.code}: {ended.said[-300:]}")
            else:
                tally.seen["then finished with more room, the same to the bit"] += 1
    return [tally]


def _check(tally: Tally, ended: Ended, where: str) -> None:
    if ended.crashed:
        tally.seen["traceback"] += 1
        tally.tracebacks.append(f"{where}: {ended.said[-500:]}")
    elif ended.code in (1, 2) and ended.sentence:
        tally.seen[f"one sentence, exit code {ended.code}"] += 1
    elif ended.code == 0:
        tally.seen["there was room enough"] += 1
    else:
        tally.seen[f"exit code {ended.code}"] += 1
        tally.silent.append(f"{where}: exit code {ended.code}: {ended.said[-500:]}")


def forbid(samples: Samples, count: int, seed: int) -> list[Tally]:
    """Run every command as a user who may not write, `count` times in all."""
    tally = Tally("a read-only folder")
    run, stopped = samples.root / "read-only run", samples.root / "read-only stopped"
    images = samples.root / "read-only images"
    for source, target in ((samples.finished, run), (samples.stopped, stopped)):
        shutil.copytree(source, target, dirs_exist_ok=True)
    shutil.copytree(samples.data, images, ignore=shutil.ignore_patterns(CACHE), dirs_exist_ok=True)
    home = samples.root / "home"
    home.mkdir(exist_ok=True)
    folders = (run, stopped, images, *(path for path in images.rglob("*") if path.is_dir()), samples.root)
    for folder in folders:
        folder.chmod(0o555)
    home.chmod(0o555)
    before = {path: path.read_bytes() for folder in (run, stopped) for path in folder.iterdir()}
    commands: tuple[tuple[object, ...], ...] = (
        ("evaluate", run, *EVALUATION, "--fresh"),
        ("gradients", run, "--images", 20, "--device", "cpu"),
        ("compare", run, "--images", 20, "--device", "cpu", "--out", samples.root / "comparison"),
        ("train", "--resume", "--out", stopped, "--device", "cpu", "--quiet"),
        train(samples.root / "new", samples.data),
        train(run / "new", samples.data),
        train(Path("/tmp") / f"rmcla-{os.getpid()}", images),
        ("reproduce", "table2", "--data", "digits", "--epochs", 1, "--no-autoattack", "--out", samples.root / "table"),
    )
    try:
        for number in range(count):
            ended = rmcla(*commands[number % len(commands)], prepare=as_nobody(home))
            _check(tally, ended, str(commands[number % len(commands)]))
    finally:
        for folder in (*folders, home):
            folder.chmod(0o755)
    tally.lost += [str(path) for path, content in before.items() if path.read_bytes() != content]
    shutil.rmtree(Path("/tmp") / f"rmcla-{os.getpid()}", ignore_errors=True)
    return [tally]


def as_nobody(home: Path) -> Callable[[], None]:
    """Return a function that gives up root's right to write everywhere."""

    def prepare() -> None:
        os.environ["HOME"] = str(home)
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    return prepare
