"""What can happen to a run from outside, as one sentence: too little memory, a lost process, a full /dev/shm."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from rmcla_fast.errors import OutOfMemory, RunFailed, short_of_memory
from rmcla_fast.training.config import ResolvedConfig
from rmcla_fast.training.torch_settings import not_deterministic

# Torch's words for a worker that could not put a batch into /dev/shm. They come as a RuntimeError, or as a bus error
# that killed the worker, if the system had promised more memory than there is.
WORDS_OF_FULL_SHM = (
    "shared memory",
    "Bus error",
    "No space left on device",
    "unable to mmap",
    "unable to write to file",
)
FULL = "/dev/shm, through which the workers pass their images, is full; make it larger, or give --workers 0"
LOST_WORKER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (is killed by signal: [^.]*|exited unexpectedly)")


@contextmanager
def reported(config: ResolvedConfig, processes: int) -> Iterator[None]:
    """Raise what torch or the system reports as a RunFailed of one sentence with the way out, and no traceback.

    Torch reports a lost worker wherever the run is, by a signal, so this surrounds the whole run.

    Args:
        config: the options of the run.
        processes: the number of ranks that share a batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if memory := short_of_memory(error):
            raise OutOfMemory(f"{memory}; {_less_memory(config, processes)}") from error
        if operation := not_deterministic(error):
            raise RunFailed(
                f"--deterministic is not possible, since {operation} has no deterministic implementation in torch; "
                "start another run without --deterministic, or with a --model that does not use it"
            ) from error
        if sentence := _lost_worker(str(error)):
            raise RunFailed(f"{sentence}; --resume goes on from the last checkpoint") from error
        raise


def not_started(error: OSError, workers: int) -> RunFailed:
    """Return the error of a run whose workers could not be started."""
    if error.errno == errno.ENOSPC:  # their locks are in /dev/shm
        return RunFailed(f"{FULL}; --resume goes on from the last checkpoint")
    return RunFailed(
        f"the processes that decode images could not be started ({error.strerror}); give fewer than {workers} "
        "--workers; --resume goes on from the last checkpoint"
    )


def _less_memory(config: ResolvedConfig, processes: int) -> str:
    """Return what to do if a batch does not fit in memory."""
    batch_size, accumulate = config.batch_size, 2 * config.accumulate
    ways = [f"--batch-size {batch_size // 2}"] if batch_size >= 2 * processes else []
    if batch_size % (accumulate * processes) == 0 and batch_size >= 2 * accumulate * processes:
        ways.append(f"--accumulate {accumulate}")
    smaller = " or ".join(ways or ["a smaller --model"])
    return f"start another run with {smaller}, or go on from the last checkpoint with --resume when more memory is free"


def _lost_worker(text: str) -> str:
    """Return what happened to a process that decodes images; "" if the error is another one."""
    lost = LOST_WORKER.search(text)
    in_worker = lost is not None or "in DataLoader worker process" in text
    if in_worker and any(words in text for words in WORDS_OF_FULL_SHM):
        return FULL
    return f"a process that decodes images was lost ({lost[0]})" if lost else ""
