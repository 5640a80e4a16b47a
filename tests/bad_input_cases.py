"""Bad arguments of operators: how a table of them is written, and the checks that every table is put through."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Backend
from torch import Tensor

NAN, INF = float("nan"), float("inf")
Change = Callable[[torch.device], Any]  # a bad argument, made on the backend's device
Row = tuple[str, Change, type[Exception], str]  # the argument, its value, the error, the sentence that begins it
Direct = tuple[str, tuple[Any, ...], dict[str, Tensor]]  # a registered operator, its arguments, its buffers


class Operator(NamedTuple):
    """A public function, good arguments of it, and what it says of bad ones."""

    function: Callable[..., Any]
    arguments: Callable[[torch.device], dict[str, Any]]
    table: list[Row]


def ones(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Change:
    return lambda device: torch.ones(shape, dtype=dtype, device=device, requires_grad=grad)


def elsewhere(*shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda _: torch.empty(shape, dtype=dtype, device="meta")


def overlapping(*shape: int) -> Change:
    return lambda device: torch.ones(1, *shape[1:], device=device).expand(shape)


def sparse(*shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda device: torch.ones(shape, dtype=dtype, device=device).to_sparse()


def constant(value: Any) -> Change:
    return lambda _: value


BACKEND = [
    ("backend", constant("gpu"), ValueError, "backend must be one of 'reference', .*; got 'gpu'"),
    ("backend", constant(""), ValueError, "backend must be one of 'reference', .*; got ''"),
]


def assert_one_sentence_names_each(backend: Backend, operator: Operator) -> None:
    good = {"backend": backend.name, **operator.arguments(backend.device)}
    operator.function(**good)
    for argument, change, error, sentence in operator.table:
        value = change(backend.device)
        with pytest.raises(error, match=rf"^{sentence}") as raised:
            operator.function(**{**good, argument: value})
        assert "\n" not in str(raised.value)


def assert_every_argument_has_a_row(operator: Operator) -> None:
    """A new argument needs its sentence in the table."""
    assert set(inspect.signature(operator.function).parameters) == {row[0] for row in operator.table}


def assert_kernels_refuse(backend: Backend, calls: list[Direct]) -> None:
    """C++ callers reach the compiled kernels without the public checks: an error, and no memory read past its end."""
    if backend.name not in ("cpu", "cuda"):
        pytest.skip("only compiled kernels are called directly by C++")
    taken = []
    for name, arguments, out in calls:
        operator = getattr(backend.operator(name), "out" if out else "default")
        try:
            operator(*arguments, **out)
        except (ValueError, TypeError, RuntimeError):
            continue
        taken.append((name, arguments[1:], out))
    assert not taken
