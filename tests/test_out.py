"""Every operator with `out`: it may overlap an input in memory, and autograd notices that it was written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Backend
from torch import Tensor

import rmcla_fast

SIZE = 2052  # more than one block of any backend
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter, for rows beyond the batch

Operator = Callable[[Tensor, Tensor | None, str], Tensor]


def perturb_images(tensor: Tensor, out: Tensor | None, backend: str) -> Tensor:
    origin, grad = torch.zeros_like(tensor), torch.ones_like(tensor)
    return rmcla_fast.perturb_step(tensor, origin, grad, step_size=0.1, epsilon=2.0, out=out, backend=backend)


def perturb_origin(tensor: Tensor, out: Tensor | None, backend: str) -> Tensor:
    images, grad = torch.zeros_like(tensor), torch.ones_like(tensor)
    return rmcla_fast.perturb_step(images, tensor, grad, step_size=2.0, epsilon=0.1, out=out, backend=backend)


def start(tensor: Tensor, out: Tensor | None, backend: str) -> Tensor:
    rng = torch.tensor([3, 4], device=tensor.device)
    return rmcla_fast.random_start(tensor, 0.1, rng=rng, out=out, backend=backend)


def redistribute(tensor: Tensor, out: Tensor | None, backend: str) -> Tensor:
    rows = tensor.view(-1, 12)
    labels = torch.arange(len(rows), device=tensor.device) % 12
    result = rmcla_fast.redistribute_labels(
        rows, labels, out=None if out is None else out.view(-1, 12), backend=backend
    )
    return result.view(-1)


OPERATORS: list[Operator] = [perturb_images, perturb_origin, start, redistribute]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
@pytest.mark.parametrize("shift", [1, 4, 12])
def test_out_may_be_a_shifted_view_of_an_input(backend: Backend, operator: Operator, shift: int) -> None:
    for forwards in (True, False):
        memory = torch.rand(SIZE + shift, generator=torch.Generator().manual_seed(0)).to(backend.device)
        ends = memory[:SIZE], memory[shift:]
        tensor, out = ends if forwards else ends[::-1]
        expected = operator(tensor.clone(), None, backend.name)
        assert torch.equal(operator(tensor, out, backend.name), expected)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_autograd_sees_that_out_was_written(backend: Backend, operator: Operator) -> None:
    """If `out` was saved for a backward pass, that pass must fail after `out` was written."""
    tensor = torch.rand(SIZE, device=backend.device)
    out = torch.rand(SIZE, device=backend.device)
    weight = torch.ones(SIZE, device=backend.device, requires_grad=True)
    product = (weight * out).sum()
    operator(tensor, out, backend.name)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
