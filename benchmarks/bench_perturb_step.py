"""Time perturb_step with `out` against the reference and against plain code, eager and compiled.

Each compiled rival writes into a buffer of its own, which is used again in every call. The reference handles NaN, and
the plain code does not.
"""

from __future__ import annotations

import pytest
import torch
from cases import IMAGES, MASKS, compare, compiled, compiled_reference, mask_of
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import rmcla_fast
from rmcla_fast import reference
from rmcla_fast.ops.tensors import to_unit

EPSILON = 8 / 255


def by_reference(images: Tensor, origin: Tensor, grad: Tensor) -> Tensor:
    return reference.perturb_step(images, origin, grad, EPSILON, None, EPSILON, None, 0.0, 1.0)


def plain(images: Tensor, origin: Tensor, grad: Tensor) -> Tensor:
    origin = origin / 255 if origin.dtype == torch.uint8 else origin
    moved = images + EPSILON * grad.sign()
    return torch.clamp(torch.min(torch.max(moved, origin - EPSILON), origin + EPSILON), 0, 1)


def by_reference_into(images: Tensor, origin: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    return out.copy_(by_reference(images, origin, grad))


def plain_into(images: Tensor, origin: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    return out.copy_(plain(images, origin, grad))


def plain_masked(images: Tensor, origin: Tensor, grad: Tensor, mask: Tensor) -> Tensor:
    radius = EPSILON * mask
    moved = images + radius * grad.sign()
    return torch.clamp(torch.min(torch.max(moved, origin - radius), origin + radius), 0, 1)


def plain_masked_into(images: Tensor, origin: Tensor, grad: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    return out.copy_(plain_masked(images, origin, grad, mask))


@pytest.mark.parametrize(
    ("dtype", "from_bytes"),
    [
        pytest.param(torch.float32, False, id="float32"),
        pytest.param(torch.bfloat16, False, id="bfloat16"),
        pytest.param(torch.float32, True, id="uint8"),
    ],
)
@pytest.mark.parametrize("shape", IMAGES)
def bench_perturb_step(
    benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, from_bytes: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    origin = pixels if from_bytes else to_unit(pixels).to(dtype)
    images = (to_unit(pixels) + EPSILON * (2 * torch.rand(shape, generator=generator).to(device) - 1)).to(dtype)
    grad = torch.randn(shape, generator=generator).to(device, dtype)
    inputs = images, origin, grad
    out, kept, plain_kept = (torch.empty_like(images) for _ in range(3))
    wanted = by_reference(*inputs)
    reference_compiled, plain_compiled = compiled_reference(by_reference_into), compiled(plain_into, images)

    def check(name: str, result: Tensor) -> None:
        # In 16 bits, plain code rounds after each operation.
        slack = 0 if name in ("ours", "eager") else 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(result, wanted, rtol=0, atol=slack)

    rivals = {
        "ours": lambda: rmcla_fast.perturb_step(*inputs, step_size=EPSILON, epsilon=EPSILON, out=out),
        "eager": lambda: by_reference(*inputs),
        "compile": lambda: reference_compiled(*inputs, kept),
        "plain": lambda: plain(*inputs),
        "plain, compiled": lambda: plain_compiled(*inputs, plain_kept),
    }
    case = f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}" + (
        ", uint8 origin" if from_bytes else ""
    )
    moved = 3 * images.nbytes + origin.nbytes  # images, gradient and origin are read, and the result is written
    compare(benchmark, "perturb_step", case, rivals, check, like=images, bytes_moved=moved)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", IMAGES)
def bench_perturb_step_with_mask(
    benchmark: BenchmarkFixture, device: torch.device, shape: tuple[int, ...], kind: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(shape, generator=generator).to(device)
    images = origin + EPSILON * (2 * torch.rand(shape, generator=generator).to(device) - 1)
    grad = torch.randn(shape, generator=generator).to(device)
    mask = mask_of(kind, images)
    inputs = images, origin, grad
    out, unmasked, plain_kept = (torch.empty_like(images) for _ in range(3))
    rule = {"step_size": EPSILON, "epsilon": EPSILON}
    wanted = reference.perturb_step(*inputs, EPSILON, None, EPSILON, None, 0.0, 1.0, mask)
    plain_compiled = compiled(plain_masked_into, images)

    def check(name: str, result: Tensor) -> None:
        if name != "without mask":
            slack = 0 if name in ("ours", "eager") else 2 * torch.finfo(torch.float32).eps
            torch.testing.assert_close(result, wanted, rtol=0, atol=slack)

    rivals = {
        "ours": lambda: rmcla_fast.perturb_step(*inputs, **rule, mask=mask, out=out),
        "without mask": lambda: rmcla_fast.perturb_step(*inputs, **rule, out=unmasked),
        "eager": lambda: reference.perturb_step(*inputs, EPSILON, None, EPSILON, None, 0.0, 1.0, mask),
        "plain": lambda: plain_masked(*inputs, mask),
        "plain, compiled": lambda: plain_compiled(*inputs, mask, plain_kept),
    }
    case = f"{' x '.join(map(str, shape))}, mask {kind}"
    compare(benchmark, "perturb_step", case, rivals, check, like=images, bytes_moved=4 * images.nbytes + mask.nbytes)
