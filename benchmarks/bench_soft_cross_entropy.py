"""Time soft_cross_entropy with its backward against torch's cross_entropy with its backward, eager and compiled.

"eager" and "compile" are torch's cross_entropy, which is the plain code that a user would write. "by hand" computes the
loss and the gradient without autograd in plain code, and "by reference" does the same with the reference, which also
handles NaN and infinity. The last two are lower bounds: their result cannot be propagated back into a network.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import LOGITS, compare, compiled, compiled_reference
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import cross_entropy

import rmcla_fast
from rmcla_fast import reference

SIZES = [pytest.param(*case.values[:2], id=case.id) for case in LOGITS if case.values[2] is None]


def by_hand(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    log_p = logits.log_softmax(1)
    loss = -(labels * log_p).sum(1).mean()
    return loss, (labels.sum(1, keepdim=True) * log_p.exp() - labels) / len(logits)


def by_reference(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    loss, gradient, _ = reference.soft_cross_entropy(logits, labels, "mean", False)
    return loss, gradient / len(logits)


@pytest.mark.parametrize(("batch", "classes"), SIZES)
def bench_soft_cross_entropy(benchmark: BenchmarkFixture, device: torch.device, batch: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(batch, classes, generator=generator) * 3).to(device)
    labels = torch.rand(batch, classes, generator=generator).softmax(1).to(device)
    leaf = logits.clone().requires_grad_()

    def with_backward(loss_of: Any) -> tuple[Tensor, Tensor]:
        loss = loss_of(leaf, labels)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    wanted = by_reference(logits, labels)

    def check(name: str, result: tuple[Tensor, Tensor]) -> None:
        slack = 1 if name == "ours" else 10  # torch's log_softmax is less accurate
        torch.testing.assert_close(result[0], wanted[0], rtol=1e-6 * slack, atol=2e-6 * slack)
        torch.testing.assert_close(result[1] * batch, wanted[1] * batch, rtol=0, atol=1e-6 * slack)

    cross_entropy_compiled, by_hand_compiled = compiled(cross_entropy, logits), compiled(by_hand, logits)
    reference_compiled = compiled_reference(by_reference)
    rivals = {
        "ours": lambda: with_backward(rmcla_fast.soft_cross_entropy),
        "eager": lambda: with_backward(cross_entropy),
        "compile": lambda: with_backward(cross_entropy_compiled),
        "by hand": lambda: by_hand(logits, labels),
        "by hand, compiled": lambda: by_hand_compiled(logits, labels),
        "by reference": lambda: by_reference(logits, labels),
        "by reference, compiled": lambda: reference_compiled(logits, labels),
    }
    case = f"{batch} x {classes}, with backward"
    compare(benchmark, "soft_cross_entropy", case, rivals, check, like=logits, bytes_moved=3 * logits.nbytes)
