"""soft_cross_entropy and its backward against torch's cross_entropy and its backward, eager and compiled.

"by hand": the reference, which makes loss and gradient without autograd; so no backward of it can go on to a network.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import LOGITS, compare, compiled
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import cross_entropy

import rmcla_fast
from rmcla_fast import reference


@pytest.mark.parametrize(("batch", "classes"), [(batch, classes) for batch, classes, top_k in LOGITS if top_k is None])
def bench_soft_cross_entropy(benchmark: BenchmarkFixture, device: torch.device, batch: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(batch, classes, generator=generator) * 3).to(device)
    labels = torch.rand(batch, classes, generator=generator).softmax(1).to(device)
    leaf = logits.clone().requires_grad_()

    def plain(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return reference.soft_cross_entropy(logits, labels, "mean", False)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(rmcla_fast.soft_cross_entropy(leaf, labels), leaf)

    def torchs(loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(leaf, labels), leaf)

    loss, gradient, _ = plain(logits, labels)
    torch.testing.assert_close(rmcla_fast.soft_cross_entropy(leaf, labels).detach(), loss, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(ours()[0] * batch, gradient, rtol=0, atol=1e-6)

    rivals = {"ours": ours, "eager": torchs, "by hand": lambda: plain(logits, labels)}
    for name, run in compiled(cross_entropy, device).items():
        rivals[name] = lambda run=run: torchs(run)
    for name, run in compiled(plain, device).items():
        rivals[f"by hand, {name}"] = lambda run=run: run(logits, labels)
    compare(benchmark, "soft_cross_entropy", f"{batch} x {classes}, with backward", rivals, device)
