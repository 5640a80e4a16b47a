"""Files that hold their old or their new content after any failure, and locks that one process holds at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# A link that somebody planted is not followed, and a program that is started does not inherit the file.
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = re.compile(r"\.rmcla-.*\.[0-9a-f]{16}\.tmp", re.DOTALL)
_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_held: set[int] = set()  # the descriptors of the locks of this process


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, for reading and writing, that replaces `path` at the end of the `with` block.

    The file is then flushed to disk and renamed, and the folder is flushed too. If anything is raised in between, also
    an OSError of the write itself, the temporary file is removed and `path` stays as it was. A link at `path` is
    replaced, and not what it points to. Only a stream of the process, such as /dev/stdout, or a character device is
    written to directly.

    A temporary file is locked by its writer. Those that a killed writer left in the folder are removed first.
    """
    if _is_stream(path):
        with path.open("ab") as file:  # standard output may be a file that holds something already
            yield file
        return
    remove_left_behind(path.parent)
    handle, temporary = _new_temporary(path)
    try:
        with os.fdopen(handle, "w+b") as file:
            try:
                yield file
                file.flush()
                os.fsync(handle)
                os.replace(temporary, path)
            finally:
                _held.discard(handle)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def locked(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock file `path` within the `with` block. The system releases it if the process dies.

    The file is removed at the end, and so are the folders that were created for it if they are still empty. Where a
    lock cannot be had, because the folder is read-only or its file system has no locks, nothing is locked.

    Args:
        path: the lock file; it is created if it does not exist, and its folder, too.
        waiting: the warning to give before waiting for another process. None does not wait.

    Raises:
        Busy: another process holds the lock, and `waiting` is None.
    """
    handle, created = None, list[Path]()
    try:
        with suppress(OSError):
            created = [folder for folder in path.parents if not folder.exists()]
            handle = _lock(path, wait=False)
            if handle is None:
                if waiting is None:
                    raise Busy(f"another process holds {path}")
                warnings.warn(waiting, stacklevel=3)
                handle = _lock(path, wait=True)
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                path.unlink()  # while it is held, so that no other process can hold this file
            _release(handle)
        for folder in created:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Flush the entries of the folder to disk, so that a rename survives a power failure.

    A folder that may not be read, or that its file system cannot flush, is left to the system.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def _is_stream(path: Path) -> bool:
    """Return whether `path` is a stream of this process or a character device, and no link elsewhere to one."""
    try:
        device = stat.S_ISCHR(os.lstat(path).st_mode)
    except OSError:
        device = False
    return device or bool(_STREAM.fullmatch(str(path.absolute())))


def _new_temporary(path: Path) -> tuple[int, Path]:
    """Create a locked temporary file beside `path`, under a name of its own."""
    while True:
        # A name has at most 255 bytes, and a character of `path` at most four.
        temporary = path.with_name(f".rmcla-{path.name[:50]}.{secrets.token_hex(8)}.tmp")
        handle = os.open(temporary, _OPEN | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = _is_at(handle, temporary)
        except BlockingIOError:  # another process took it for one that was left behind
            ours = False
        except OSError:  # the file system has no locks, so nothing is taken for left behind
            ours = True
        if ours:
            _held.add(handle)
            return handle, temporary
        os.close(handle)


def is_left_behind(path: Path) -> bool:
    """Return whether the file has the name of a temporary file of `replacing`, which a killed process may leave."""
    return bool(_TEMPORARY.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


def remove_left_behind(folder: Path) -> None:
    """Remove the temporary files in the folder whose writers are dead, so that nobody holds a lock on them."""
    with suppress(OSError):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            with suppress(OSError):
                handle = _lock(folder / name, wait=False, create=False)
                if handle is not None:
                    os.unlink(folder / name)
                    _release(handle)


def _lock(path: Path, *, wait: bool, create: bool = True) -> int | None:
    """Return the descriptor of the locked file, or None if another process holds it and `wait` is not set.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    while True:
        handle = _open_lock(path) if create else os.open(path, _OPEN)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(handle, path):
                _held.add(handle)
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder has removed it, and another process may lock a new one


def _open_lock(path: Path) -> int:
    """Open a lock file, which is created if it does not exist, and its folder, too."""
    for _ in range(100):
        with suppress(FileNotFoundError, FileExistsError):  # another process has removed the empty folder
            path.parent.mkdir(parents=True, exist_ok=True)
            return _open_or_create(path)
    return _open_or_create(path)


def _open_or_create(path: Path) -> int:
    try:
        return os.open(path, _OPEN | os.O_CREAT, 0o666)
    except PermissionError:  # the file may be another user's; it can be locked without being writable
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _release(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        here, there = os.fstat(handle), os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(there.st_mode) and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _close_inherited_locks() -> None:
    """Close the locks in a forked process, which would keep them after the death of the process that holds them."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)
