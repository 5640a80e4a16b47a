"""random_start against the reference, and against what it replaces: the noise of torch's own generator, added."""

from __future__ import annotations

import pytest
import torch
from cases import IMAGES, compare, compiled
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference

EPSILON = 8 / 255


def plain_into(images: Tensor, out: Tensor) -> Tensor:
    return out.copy_(images + EPSILON * (2 * torch.rand_like(images) - 1))


@pytest.mark.parametrize("shape", IMAGES)
def bench_random_start(benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    rng = torch.tensor([1, 2], device=device)
    out, noise, kept = (torch.empty_like(images) for _ in range(3))
    wanted = reference.random_start(images, EPSILON, None, rng)
    plain_compiled = compiled(plain_into, images)

    def check(name: str, result: Tensor) -> None:
        if name in ("ours", "eager"):
            assert torch.equal(result, wanted)
        else:  # other noise: of the same distribution
            moved = result - images
            assert moved.abs().max() <= EPSILON + 1e-6
            torch.testing.assert_close(moved.std(), (wanted - images).std(), rtol=0.02, atol=0)

    rivals = {
        "ours": lambda: rmcla_fast.random_start(images, EPSILON, rng=rng, out=out),
        "eager": lambda: reference.random_start(images, EPSILON, None, rng),
        "plain": lambda: torch.add(images, noise.uniform_(-EPSILON, EPSILON), out=out),
        "plain, compiled": lambda: plain_compiled(images, kept),
    }
    case = " x ".join(map(str, shape))
    compare(benchmark, "random_start", case, rivals, check, like=images, bytes_moved=2 * images.nbytes)
