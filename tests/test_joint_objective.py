"""`joint_objective`: the results of `joint_gradient`, with an objective that is differentiable once."""

from __future__ import annotations

import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES
from conftest import Backend
from tolerances import assert_same_bits
from torch import Tensor

import rmcla_fast

TARGETS = ("mc", "ll", "untargeted", "margin")


def test_only_the_objective_requires_grad(backend: Backend) -> None:
    logits = torch.randn(3, 5, device=backend.device, requires_grad=True)
    result = rmcla_fast.joint_objective(logits, torch.tensor([0, 1, 4], device=backend.device), backend=backend.name)
    assert [tensor.requires_grad for tensor in result] == [True, False, False]


@pytest.mark.parametrize("scheme", ["main", "sup", "none"])
def test_results_and_derivative_are_those_of_joint_gradient(backend: Backend, scheme: str) -> None:
    for dtype in FLOAT_DTYPES:
        logits = (
            torch.randn(4, 10, generator=torch.Generator().manual_seed(5)).to(backend.device, dtype).requires_grad_()
        )
        labels = torch.tensor([0, 3, 9, 3], device=backend.device)
        target = torch.tensor([1, 3, 0, 9], device=backend.device)
        for wanted in (*TARGETS, target):
            plain = rmcla_fast.joint_gradient(logits, labels, target=wanted, label_scheme=scheme, backend=backend.name)
            result = rmcla_fast.joint_objective(
                logits, labels, target=wanted, label_scheme=scheme, backend=backend.name
            )
            assert_same_bits(result.objective, plain.objective, "objective")
            assert_same_bits(result.targets, plain.targets, "targets")
            if scheme == "none":
                assert result.soft_labels is None
            else:
                assert_same_bits(result.soft_labels, plain.soft_labels, "soft_labels")
            (gradient,) = torch.autograd.grad(result.objective.sum(), logits)
            assert_same_bits(gradient, plain.grad_logits, "gradient")


def test_the_incoming_gradient_scales_each_row(backend: Backend) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(backend.device)
    logits.requires_grad_()
    labels = torch.tensor([0, 3, 9, 3], device=backend.device)
    weights = torch.tensor([1.0, -2.0, 0.0, 5.0], dtype=torch.float64, device=backend.device)
    result = rmcla_fast.joint_objective(logits, labels, backend=backend.name)
    (gradient,) = torch.autograd.grad((weights * result.objective).sum(), logits)
    plain = rmcla_fast.joint_gradient(logits, labels, backend=backend.name).grad_logits
    assert_same_bits(gradient, weights[:, None] * plain, "gradient")


@pytest.mark.parametrize("target", [*TARGETS, "given"])
def test_gradcheck(backend: Backend, target: str) -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(backend.device)
    labels = torch.tensor([0, 5, 2], device=backend.device)
    wanted = torch.tensor([1, 5, 0], device=backend.device) if target == "given" else target

    def objective(z: Tensor) -> Tensor:
        return rmcla_fast.joint_objective(z, labels, target=wanted, backend=backend.name).objective

    assert torch.autograd.gradcheck(objective, (logits.requires_grad_(),))


def test_a_second_derivative_raises(backend: Backend) -> None:
    logits = torch.randn(3, 6, device=backend.device, requires_grad=True)
    labels = torch.tensor([0, 5, 2], device=backend.device)
    objective = rmcla_fast.joint_objective(logits, labels, backend=backend.name).objective
    with pytest.raises(RuntimeError, match="joint_objective has no second derivative"):
        torch.autograd.grad(objective.sum(), logits, create_graph=True)
