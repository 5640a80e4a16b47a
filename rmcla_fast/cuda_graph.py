"""Recording work in a CUDA graph; where that fails, nothing of the attempt is left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BROKEN: list[torch.cuda.CUDAGraph] = []  # PyTorch's allocator may ask a graph whose capture broke for ever


class CaptureFailed(Exception):
    """Why something cannot be captured, in one sentence."""


def record(
    device: torch.device, stream: torch.cuda.Stream, work: Callable[[], Any]
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """`work` as a graph, captured on `stream` without being run, and what it returned; CaptureFailed if it cannot be.

    PyTorch does not clean up where the capture itself broke, as it does when the host waits within it: then the stream
    would stay current, the allocator would go on recording, and the random generator would refuse to draw.
    """
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    try:
        # The outer context puts the current stream back, which the inner one does not if its capture broke.
        # "thread_local": a thread that pins batches meanwhile must not break the capture.
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            return graph, work()
    except Exception as error:  # whatever a model does that no graph can hold
        raise CaptureFailed(first_line(_first(error) if _cleaned_up(graph, device, pool) else error)) from error


def _cleaned_up(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> bool:
    """Whether there was anything to clean up: not where the capture ended as it should, only too early."""
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # it has ended
        return False
    torch._C._cuda_releasePool(index, pool)
    _BROKEN.append(graph)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())  # a copy is in no capture
    torch.cuda.synchronize(device)
    return True


def _first(error: BaseException) -> BaseException:
    """The error that broke the capture; those that followed say no more than that it is broken."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """CaptureFailed where the host waits for the GPU inside: a capture would break there."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # PyTorch says once that the check does not know every way to wait
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        raise CaptureFailed(first_line(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def first_line(error: BaseException) -> str:
    """What an error says, or what it is called."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
