"""The settings of torch that decide how a run computes; they belong to the process and are put back after the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from rmcla_fast.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")  # the two sizes with which cuBLAS repeats its bits


@contextmanager
def torch_settings(device: torch.device, threads: int, deterministic: bool) -> Iterator[None]:
    """Compute with `threads` threads inside the `with` block, and put all settings back after it.

    Without `deterministic`, cuDNN times its algorithms once for each new shape, unless the process itself asks for
    deterministic ones. What `deterministic` sets is described at `deterministic_algorithms`.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark
    torch.set_num_threads(threads)
    if device.type == "cuda":
        cudnn.benchmark = not (deterministic or cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        if deterministic:
            with deterministic_algorithms():
                yield
        else:
            yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark = before[1]


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Let torch use only algorithms that repeat their bits, and raise a RuntimeError for an operation that has none.

    `torch.use_deterministic_algorithms` is on, which also keeps torch.compile from choosing kernels by their time, and
    cuDNN is deterministic. TF32 and sums in 16 bits stay as they are, since they repeat their bits. Torch would also
    fill new memory, in case that a program reads it before it is written. That takes time and no code of this package
    needs it, so it is off, unless the process was deterministic before.
    """
    from torch._inductor import config as inductor  # `use_deterministic_algorithms` imports it, too

    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, memory.fill_uninitialized_memory
    compiler = getattr(inductor, "deterministic", None)  # torch 2.9 has no such setting
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic = True
    memory.fill_uninitialized_memory = enabled and before[1]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        cudnn.deterministic, memory.fill_uninitialized_memory = before
        if compiler is not None:
            inductor.deterministic = compiler


def choose_cublas_workspace(device: str | None) -> None:
    """Give cuBLAS a workspace with which it repeats its bits, by an environment variable. `device` is a run's option.

    cuBLAS reads the variable once in a process, at its first use, so this must happen before that, and the variable
    stays set.

    Raises:
        UserError: the variable has another value, or CUDA is in use, which may mean that it is too late.
    """
    if not torch.cuda.is_available() or (device or "cuda").partition(":")[0] != "cuda":
        return
    value = os.environ.get(WORKSPACE)
    if value is None and not torch.cuda.is_initialized():
        os.environ[WORKSPACE] = DETERMINISTIC_WORKSPACES[0]
    elif value not in DETERMINISTIC_WORKSPACES:
        why = "this process has used CUDA before" if value is None else f"it is {value!r}"
        raise UserError(
            f"--deterministic needs {WORKSPACE}={DETERMINISTIC_WORKSPACES[0]} in the environment from the start of the "
            f"process, and {why}; set it and start again"
        )


def not_deterministic(error: BaseException) -> str:
    """Return the name of the operation that `deterministic_algorithms` refused; "" if the error is another one."""
    name, found, _ = str(error).partition(" does not have a deterministic implementation")
    return name.rpartition(" ")[2] if found and isinstance(error, RuntimeError) else ""
