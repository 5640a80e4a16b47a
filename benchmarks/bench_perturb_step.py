"""perturb_step into a given buffer against the reference, eager and compiled with a buffer of its own kept."""

from __future__ import annotations

import pytest
import torch
from cases import IMAGES, compare, compiled
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference

EPSILON = 8 / 255


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", IMAGES)
def bench_perturb_step(
    benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(shape, generator=generator).to(device, dtype)
    images = (origin + EPSILON * (2 * torch.rand(shape, generator=generator).to(device) - 1)).to(dtype)
    grad = torch.randn(shape, generator=generator).to(device, dtype)
    out, kept = torch.empty_like(images), torch.empty_like(images)

    def plain(images: Tensor, origin: Tensor, grad: Tensor) -> Tensor:
        return reference.perturb_step(images, origin, grad, EPSILON, None, EPSILON, None, 0.0, 1.0)

    def plain_into(images: Tensor, origin: Tensor, grad: Tensor, out: Tensor) -> Tensor:
        return out.copy_(plain(images, origin, grad))

    def ours() -> Tensor:
        return rmcla_fast.perturb_step(images, origin, grad, step_size=EPSILON, epsilon=EPSILON, out=out)

    assert torch.equal(ours(), plain(images, origin, grad))
    rivals = {"ours": ours, "eager": lambda: plain(images, origin, grad)}
    for name, run in compiled(plain_into, device).items():
        assert torch.equal(run(images, origin, grad, kept), out)
        rivals[name] = lambda run=run: run(images, origin, grad, kept)
    large = images if images.numel() >= 1 << 22 else None
    case = f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
    compare(benchmark, "perturb_step", case, rivals, device, copied=large, bytes_moved=4 * images.nbytes)
