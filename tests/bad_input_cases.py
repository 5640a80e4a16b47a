"""Tables of bad arguments: the types of their rows, makers of bad values, and the checks that use the tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Backend
from torch import Tensor

NAN, INF = float("nan"), float("inf")
BadValue = Callable[[torch.device], Any]  # makes a bad value on the backend's device
Row = tuple[str, BadValue, type[Exception], str]  # argument, its bad value, the error, the beginning of its message
Direct = tuple[str, tuple[Any, ...], dict[str, Tensor]]  # a registered operator, its arguments, its `out`


class Operator(NamedTuple):
    """A public function, good arguments for it, and a table of bad ones with their errors."""

    function: Callable[..., Any]
    arguments: Callable[[torch.device], dict[str, Any]]
    table: list[Row]


def ones(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> BadValue:
    return lambda device: torch.ones(shape, dtype=dtype, device=device, requires_grad=grad)


def elsewhere(*shape: int, dtype: torch.dtype = torch.float32) -> BadValue:
    """Make a tensor on another device."""
    return lambda _: torch.empty(shape, dtype=dtype, device="meta")


def overlapping(*shape: int) -> BadValue:
    """Make a tensor whose elements share memory."""
    return lambda device: torch.ones(1, *shape[1:], device=device).expand(shape)


def sparse(*shape: int, dtype: torch.dtype = torch.float32) -> BadValue:
    return lambda device: torch.ones(shape, dtype=dtype, device=device).to_sparse()


def constant(value: Any) -> BadValue:
    return lambda _: value


BACKEND = [
    ("backend", constant("gpu"), ValueError, "backend must be one of 'reference', .*; got 'gpu'"),
    ("backend", constant(""), ValueError, "backend must be one of 'reference', .*; got ''"),
]


def assert_bad_values_raise_one_sentence(backend: Backend, operator: Operator) -> None:
    """Check that each bad value in the table raises its error, with a message of one line."""
    good = {"backend": backend.name, **operator.arguments(backend.device)}
    operator.function(**good)
    for argument, make, error, sentence in operator.table:
        value = make(backend.device)
        with pytest.raises(error, match=rf"^{sentence}") as raised:
            operator.function(**{**good, argument: value})
        assert "\n" not in str(raised.value)


def assert_every_argument_has_a_row(operator: Operator) -> None:
    """Check that the table has at least one bad value for every argument."""
    assert set(inspect.signature(operator.function).parameters) == {row[0] for row in operator.table}


def assert_kernels_refuse(backend: Backend, calls: list[Direct]) -> None:
    """Check that the compiled kernels raise an error for each call.

    Callers from C++ reach them without the checks in Python, and no memory outside a tensor may be read.
    """
    if backend.name not in ("cpu", "cuda"):
        pytest.skip("only compiled kernels can be called from C++")
    accepted = []
    for name, arguments, out in calls:
        operator = getattr(backend.operator(name), "out" if out else "default")
        try:
            operator(*arguments, **out)
        except (ValueError, TypeError, RuntimeError):
            continue
        accepted.append((name, arguments[1:], out))
    assert not accepted
