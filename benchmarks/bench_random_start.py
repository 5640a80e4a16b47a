"""random_start against the reference, and against what it replaces: the noise of torch's own generator, added."""

from __future__ import annotations

import pytest
import torch
from cases import IMAGES, compare
from pytest_benchmark.fixture import BenchmarkFixture

import rmcla_fast
from rmcla_fast import reference

EPSILON = 8 / 255


@pytest.mark.parametrize("shape", IMAGES)
def bench_random_start(benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    rng = torch.tensor([1, 2], device=device)
    out, noise = torch.empty_like(images), torch.empty_like(images)
    wanted = reference.random_start(images, EPSILON, None, rng)
    assert torch.equal(rmcla_fast.random_start(images, EPSILON, rng=rng, out=out), wanted)

    @torch.compile(fullgraph=True, dynamic=False)
    def compiled_uniform() -> torch.Tensor:
        return out.copy_(images + EPSILON * (2 * torch.rand_like(images) - 1))

    rivals = {
        "ours": lambda: rmcla_fast.random_start(images, EPSILON, rng=rng, out=out),
        "eager": lambda: reference.random_start(images, EPSILON, None, rng),
        "torch's generator": lambda: torch.add(images, noise.uniform_(-EPSILON, EPSILON), out=out),
        "the same, compiled": compiled_uniform,
    }
    compare(benchmark, "random_start", " x ".join(map(str, shape)), rivals, device)
