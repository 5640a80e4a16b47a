"""Time the public functions on tensors of a few elements, where a call costs little but its overhead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import compare
from pytest_benchmark.fixture import BenchmarkFixture

import rmcla_fast


def calls(device: torch.device) -> dict[str, Callable[[], object]]:
    images, origin, grad = (torch.rand(2, 3, 4, 4, device=device) for _ in range(3))
    out, rng = torch.empty_like(images), torch.tensor([1, 2], device=device)
    logits, labels = torch.randn(4, 10, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    leaf, soft = logits.clone().requires_grad_(), torch.rand(4, 10, device=device)
    step = {"step_size": 0.1, "epsilon": 0.1}
    return {
        "perturb_step": lambda: rmcla_fast.perturb_step(images, origin, grad, **step),
        "perturb_step, out=": lambda: rmcla_fast.perturb_step(images, origin, grad, **step, out=out),
        "random_start": lambda: rmcla_fast.random_start(images, 0.1, rng=rng),
        "joint_gradient": lambda: rmcla_fast.joint_gradient(logits, labels),
        "redistribute_labels": lambda: rmcla_fast.redistribute_labels(logits, labels),
        "joint_objective, with autograd": lambda: rmcla_fast.joint_objective(leaf, labels),
        "soft_cross_entropy, with autograd": lambda: rmcla_fast.soft_cross_entropy(leaf, soft),
        "torch.add, out=, for scale": lambda: torch.add(images, grad, out=out),
    }


@pytest.mark.parametrize("name", calls(torch.device("cpu")))
def bench_overhead(benchmark: BenchmarkFixture, device: torch.device, name: str) -> None:
    like = torch.empty(0, device=device)
    compare(benchmark, "a call", name, {"ours": calls(device)[name]}, lambda *_: None, like=like, bytes_moved=0)
