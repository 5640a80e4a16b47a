"""Time joint_gradient and redistribute_labels against the reference and against plain code, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from cases import LOGITS, compare, compiled, compiled_reference
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import one_hot

import rmcla_fast
from rmcla_fast import reference

BETA, GAMMA = 9.0, 0.01


def make_inputs(batch: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator) * 3
    return logits.to(device), torch.randint(classes, (batch,), generator=generator).to(device)


def plain_labels(logits: Tensor, is_true: Tensor, top_k: int | None) -> Tensor:
    """Return redistributed labels (B, C) by plain code, which does not handle NaN or infinity."""
    share = logits.masked_fill(is_true, -torch.inf).amax(1, keepdim=True) - logits + GAMMA
    share = share.masked_fill(is_true, 0)
    if top_k:
        values, receivers = share.topk(top_k)
        share = torch.zeros_like(share).scatter(1, receivers, values)
    kept = BETA * share.amax(1, keepdim=True)
    return torch.where(is_true, kept, share) / (share.sum(1, keepdim=True) + kept)


@pytest.mark.parametrize(("batch", "classes", "top_k"), LOGITS)
def bench_joint_gradient(
    benchmark: BenchmarkFixture, device: torch.device, batch: int, classes: int, top_k: int | None
) -> None:
    logits, labels = make_inputs(batch, classes, device)

    def by_reference(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return reference.joint_gradient(logits, labels, "mc", None, BETA, GAMMA, top_k, "main")

    def plain(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        is_true = one_hot(labels, classes).bool()
        targets = logits.masked_fill(is_true, -torch.inf).argmax(1)
        log_p = logits.log_softmax(1)
        objective = log_p.gather(1, targets[:, None]).squeeze(1)
        gradient = one_hot(targets, classes) - log_p.exp()
        return objective, gradient, plain_labels(logits, is_true, top_k), targets

    wanted = by_reference(logits, labels)

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        slack = 10 if name.startswith("plain") else 1  # torch's log_softmax is less accurate
        torch.testing.assert_close(result[0], wanted[0], rtol=1e-6 * slack, atol=2e-6 * slack)
        torch.testing.assert_close(result[1], wanted[1], rtol=0, atol=1e-6 * slack)
        torch.testing.assert_close(result[2], wanted[2], rtol=0, atol=1e-6 * slack)
        assert torch.equal(result[3], wanted[3])

    plain_compiled, reference_compiled = compiled(plain, logits), compiled_reference(by_reference)
    rivals = {
        "ours": lambda: rmcla_fast.joint_gradient(logits, labels, top_k=top_k),
        "eager": lambda: by_reference(logits, labels),
        "compile": lambda: reference_compiled(logits, labels),
        "plain": lambda: plain(logits, labels),
        "plain, compiled": lambda: plain_compiled(logits, labels),
    }
    case = f"{batch} x {classes}" + (f", top {top_k}" if top_k else "")
    compare(benchmark, "joint_gradient", case, rivals, check, like=logits, bytes_moved=3 * logits.nbytes)


@pytest.mark.parametrize(("batch", "classes", "top_k"), LOGITS)
def bench_redistribute_labels(
    benchmark: BenchmarkFixture, device: torch.device, batch: int, classes: int, top_k: int | None
) -> None:
    logits, labels = make_inputs(batch, classes, device)
    out, kept = torch.empty_like(logits), torch.empty_like(logits)

    def by_reference(logits: Tensor, labels: Tensor) -> Tensor:
        return reference.redistribute_labels(logits, labels, BETA, GAMMA, top_k, "main")

    def plain(logits: Tensor, labels: Tensor) -> Tensor:
        return plain_labels(logits, one_hot(labels, classes).bool(), top_k)

    def plain_into(logits: Tensor, labels: Tensor, out: Tensor) -> Tensor:
        return out.copy_(plain(logits, labels))

    wanted = by_reference(logits, labels)

    def check(name: str, result: Tensor) -> None:
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-6)

    plain_compiled, reference_compiled = compiled(plain_into, logits), compiled_reference(by_reference)
    rivals = {
        "ours": lambda: rmcla_fast.redistribute_labels(logits, labels, top_k=top_k, out=out),
        "eager": lambda: by_reference(logits, labels),
        "compile": lambda: reference_compiled(logits, labels),
        "plain": lambda: plain(logits, labels),
        "plain, compiled": lambda: plain_compiled(logits, labels, kept),
    }
    case = f"{batch} x {classes}" + (f", top {top_k}" if top_k else "") + ", out="
    compare(benchmark, "redistribute_labels", case, rivals, check, like=logits, bytes_moved=2 * logits.nbytes)
