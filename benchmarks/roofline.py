"""The roof of what moves memory: the best bandwidth of a plain or a streaming copy of buffers of the same size."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import torch
from timing import Run
from torch import Tensor

_threads = ThreadPoolExecutor(max_workers=torch.get_num_threads())


def copies(like: Tensor) -> dict[str, Run]:
    """Copies of a buffer of `like`'s size, to be timed among the rivals; each moves 2 * like.nbytes."""
    source, target = torch.rand_like(like), torch.empty_like(like)
    rivals: dict[str, Run] = {"plain copy": lambda: target.copy_(source)}
    if like.device.type == "cpu":  # libc's memmove stores past the caches where the buffer exceeds them
        size = source.nbytes // torch.get_num_threads() // 64 * 64
        starts = range(0, source.nbytes, size)
        parts = [(start, min(size, source.nbytes - start)) for start in starts]

        def move(part: tuple[int, int]) -> None:
            ctypes.memmove(target.data_ptr() + part[0], source.data_ptr() + part[0], part[1])

        rivals["streaming copy"] = lambda: list(_threads.map(move, parts))
    return rivals


def roof_seconds(seconds: dict[str, float], copied: Tensor, bytes_moved: int) -> float:
    """How long moving `bytes_moved` takes at the best bandwidth among the timed copies of `copied`."""
    fastest = min(seconds[name] for name in ("plain copy", "streaming copy") if name in seconds)
    return fastest * bytes_moved / (2 * copied.nbytes)
