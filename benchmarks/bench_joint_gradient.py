"""joint_gradient and redistribute_labels against the reference, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from cases import LOGITS, compare, compiled
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference

LARGE = 1 << 22  # elements from which on memory traffic counts


def inputs(batch: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator) * 3
    return logits.to(device), torch.randint(classes, (batch,), generator=generator).to(device)


@pytest.mark.parametrize(("batch", "classes", "top_k"), LOGITS)
def bench_joint_gradient(
    benchmark: BenchmarkFixture, device: torch.device, batch: int, classes: int, top_k: int | None
) -> None:
    logits, labels = inputs(batch, classes, device)

    def plain(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return reference.joint_gradient(logits, labels, "mc", None, 9.0, 0.01, top_k, "main")

    got, wanted = rmcla_fast.joint_gradient(logits, labels, top_k=top_k), plain(logits, labels)
    torch.testing.assert_close(got.objective, wanted[0], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(got.grad_logits, wanted[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(got.soft_labels, wanted[2], rtol=0, atol=1e-6)
    assert torch.equal(got.targets, wanted[3])

    rivals = {
        "ours": lambda: rmcla_fast.joint_gradient(logits, labels, top_k=top_k),
        "eager": lambda: plain(logits, labels),
    }
    for name, run in compiled(plain, device).items():
        rivals[name] = lambda run=run: run(logits, labels)
    large = logits if logits.numel() >= LARGE else None
    case = f"{batch} x {classes}" + (f", top {top_k}" if top_k else "")
    compare(benchmark, "joint_gradient", case, rivals, device, copied=large, bytes_moved=3 * logits.nbytes)


@pytest.mark.parametrize(("batch", "classes", "top_k"), LOGITS)
def bench_redistribute_labels(
    benchmark: BenchmarkFixture, device: torch.device, batch: int, classes: int, top_k: int | None
) -> None:
    logits, labels = inputs(batch, classes, device)
    out = torch.empty_like(logits)

    def plain(logits: Tensor, labels: Tensor) -> Tensor:
        return reference.redistribute_labels(logits, labels, 9.0, 0.01, top_k, "main")

    got = rmcla_fast.redistribute_labels(logits, labels, top_k=top_k, out=out)
    torch.testing.assert_close(got, plain(logits, labels), rtol=0, atol=1e-6)

    rivals = {
        "ours": lambda: rmcla_fast.redistribute_labels(logits, labels, top_k=top_k, out=out),
        "eager": lambda: plain(logits, labels),
    }
    for name, run in compiled(plain, device).items():
        rivals[name] = lambda run=run: run(logits, labels)
    large = logits if logits.numel() >= LARGE else None
    case = f"{batch} x {classes}" + (f", top {top_k}" if top_k else "") + ", out="
    compare(benchmark, "redistribute_labels", case, rivals, device, copied=large, bytes_moved=2 * logits.nbytes)
