"""Time random_start against the reference, and against code that adds noise from torch's own generator."""

from __future__ import annotations

import pytest
import torch
from cases import IMAGES, MASKS, compare, compiled, mask_of
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference
from rmcla_fast.ops.tensors import to_unit

EPSILON = 8 / 255


def plain_into(images: Tensor, out: Tensor) -> Tensor:
    clean = images / 255 if images.dtype == torch.uint8 else images
    return out.copy_(clean + EPSILON * (2 * torch.rand_like(clean) - 1))


def plain_masked_into(images: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    return out.copy_(images + EPSILON * mask * (2 * torch.rand_like(images) - 1))


@pytest.mark.parametrize("stored", [torch.float32, torch.uint8], ids=["float32", "uint8"])
@pytest.mark.parametrize("shape", IMAGES)
def bench_random_start(
    benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...], stored: torch.dtype
) -> None:
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
    images = to_unit(pixels) if stored == torch.float32 else pixels
    rng = torch.tensor([1, 2], device=device)
    out, noise, kept = (torch.empty_like(images, dtype=torch.float32) for _ in range(3))
    wanted = reference.random_start(images, EPSILON, None, rng)
    plain_compiled = compiled(plain_into, images)

    def check(name: str, result: Tensor) -> None:
        if name in ("ours", "eager"):
            assert torch.equal(result, wanted)
        else:  # the noise is different and has the same distribution
            moved = result - to_unit(images)
            assert moved.abs().max() <= EPSILON + 1e-6
            torch.testing.assert_close(moved.std(), (wanted - to_unit(images)).std(), rtol=0.02, atol=0)

    rivals = {
        "ours": lambda: rmcla_fast.random_start(images, EPSILON, rng=rng, out=out),
        "eager": lambda: reference.random_start(images, EPSILON, None, rng),
        "plain": lambda: torch.add(
            images if stored == torch.float32 else images / 255, noise.uniform_(-EPSILON, EPSILON), out=out
        ),
        "plain, compiled": lambda: plain_compiled(images, kept),
    }
    case = " x ".join(map(str, shape)) + ("" if stored == torch.float32 else ", uint8")
    compare(benchmark, "random_start", case, rivals, check, like=out, bytes_moved=images.nbytes + out.nbytes)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", IMAGES)
def bench_random_start_with_mask(
    benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...], kind: str
) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    mask, rng = mask_of(kind, images), torch.tensor([1, 2], device=device)
    out, unmasked, noise, plain_out, kept = (torch.empty_like(images) for _ in range(5))
    wanted = reference.random_start(images, EPSILON, None, rng, mask=mask)
    plain_compiled = compiled(plain_masked_into, images)

    def check(name: str, result: Tensor) -> None:
        if name in ("ours", "eager"):
            assert torch.equal(result, wanted)
        elif name != "without mask":  # the noise is different and has the same distribution
            moved = result - images
            assert bool((moved.abs() <= EPSILON * mask + 1e-6).all())
            torch.testing.assert_close(moved.std(), (wanted - images).std(), rtol=0.05, atol=0)

    rivals = {
        "ours": lambda: rmcla_fast.random_start(images, EPSILON, rng=rng, mask=mask, out=out),
        "without mask": lambda: rmcla_fast.random_start(images, EPSILON, rng=rng, out=unmasked),
        "eager": lambda: reference.random_start(images, EPSILON, None, rng, mask=mask),
        "plain": lambda: torch.add(images, noise.uniform_(-EPSILON, EPSILON).mul_(mask), out=plain_out),
        "plain, compiled": lambda: plain_compiled(images, mask, kept),
    }
    case = f"{' x '.join(map(str, shape))}, mask {kind}"
    compare(benchmark, "random_start", case, rivals, check, like=out, bytes_moved=2 * images.nbytes + mask.nbytes)
