"""augment_start against the reference, eager and compiled: gather, crop, flip and start of one batch."""

from __future__ import annotations

import pytest
import torch
from cases import compare, compiled
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference

EPSILON = 8 / 255


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("images", "shape"), [(10_000, (3, 32, 32)), (256, (3, 224, 224))])
def bench_augment_start(
    benchmark: BenchmarkFixture,
    device: torch.device,
    images: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    generator = torch.Generator().manual_seed(0)
    dataset = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator).to(device)
    batch = 128 if shape[1] == 32 else 64
    index = torch.randperm(images, generator=generator)[:batch].to(device)
    rng = torch.tensor([1, 2], device=device)

    def plain(dataset: Tensor, index: Tensor, rng: Tensor) -> tuple[Tensor, Tensor]:
        return reference.augment_start(
            dataset, index, rng, EPSILON, None, 4, True, 0.5, dtype, layout == torch.channels_last
        )

    def ours() -> tuple[Tensor, Tensor]:
        return rmcla_fast.augment_start(dataset, index, rng=rng, epsilon=EPSILON, dtype=dtype, memory_format=layout)

    wanted = plain(dataset, index, rng)
    assert all(torch.equal(left, right) for left, right in zip(ours(), wanted, strict=True))
    rivals = {"ours": ours, "eager": lambda: plain(dataset, index, rng)}
    for name, run in compiled(plain, device).items():
        # Its kernels may fuse a multiplication with an addition: the images' bits, and the start within a rounding.
        got = run(dataset, index, rng)
        assert torch.equal(got[0], wanted[0])
        assert torch.allclose(got[1], wanted[1], rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
        rivals[name] = lambda run=run: run(dataset, index, rng)
    clean = wanted[0]
    large = clean if clean.numel() >= 1 << 22 else None
    case = f"{' x '.join(map(str, (batch, *shape)))}, {str(dtype).removeprefix('torch.')}"
    case += ", channels last" if layout == torch.channels_last else ""
    moved = 2 * clean.nbytes + clean.numel()  # both results written, the bytes read
    compare(benchmark, "augment_start", case, rivals, device, copied=large, bytes_moved=moved)
