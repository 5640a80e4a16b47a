"""Find the lower limit of an operator's time: what moving its bytes takes at the best bandwidth of a copy."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import torch
from timing import Run
from torch import Tensor

_threads = ThreadPoolExecutor(max_workers=torch.get_num_threads())


def copies(like: Tensor, bytes_moved: int) -> dict[str, tuple[Run, int]]:
    """Return copies to be timed together with the rivals of an operator, each with the number of bytes that it moves.

    There is a plain copy of `like`. On a CPU there is also one that stores past the caches. On a GPU there are also
    copies by an element-wise kernel, and copies that move as many bytes as the operator, so that the start and the end
    of a kernel have the same weight.
    """
    source, target = like.clone(), torch.empty_like(like)
    moved = 2 * like.nbytes
    rivals: dict[str, tuple[Run, int]] = {"plain copy": (lambda: target.copy_(source), moved)}
    if like.is_cuda:
        large = torch.zeros(bytes_moved // 8, device=like.device)  # float32
        large_target = torch.empty_like(large)
        rivals["kernel copy"] = (lambda: torch.neg(source, out=target), moved)
        rivals["large copy"] = (lambda: large_target.copy_(large), 2 * large.nbytes)
        rivals["large kernel copy"] = (lambda: torch.neg(large, out=large_target), 2 * large.nbytes)
    elif like.device.type == "cpu":  # libc's memmove stores past the caches if the buffer exceeds them
        size = source.nbytes // torch.get_num_threads() // 64 * 64
        starts = range(0, source.nbytes, size)
        parts = [(start, min(size, source.nbytes - start)) for start in starts]

        def move(part: tuple[int, int]) -> None:
            ctypes.memmove(target.data_ptr() + part[0], source.data_ptr() + part[0], part[1])

        rivals["streaming copy"] = (lambda: list(_threads.map(move, parts)), moved)
    return rivals


def roof_seconds(seconds: dict[str, float], copied: dict[str, tuple[Run, int]], bytes_moved: int) -> float | None:
    """Return the seconds that moving `bytes_moved` takes at the best bandwidth of the copies that were timed."""
    bandwidths = [moved / seconds[name] for name, (_, moved) in copied.items() if name in seconds]
    return bytes_moved / max(bandwidths) if bandwidths else None
