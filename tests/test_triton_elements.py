"""The Triton kernels on elements against the reference: batch geometry, every dtype, the generator, conversions.

Tests that all backends share are in test_<operator>.py.
"""

from __future__ import annotations

import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES
from oracle import PHILOX_KNOWN_ANSWERS
from tolerances import assert_same_bits
from torch import Tensor
from triton_cases import DEVICE, MARKS, tl, triton

import rmcla_fast
from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import narrow, widen
from rmcla_fast.triton_kernels.random_start import philox_words

pytestmark = MARKS


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_equal(result: Tensor, expected: Tensor, what: str) -> None:
    """Check that the bits and the memory layout are the same."""
    assert_same_bits(result, expected, what)
    assert result.stride() == expected.stride(), what


# Batches whose images are smaller and larger than a program's block, with the batch outermost, innermost and between.
IMAGES = {
    "scalar": lambda: torch.rand(()),
    "empty": lambda: torch.rand(0, 3, 4, 4),
    "vector": lambda: torch.rand(5),
    "small images": lambda: torch.rand(7, 3, 5, 5),
    "large images": lambda: torch.rand(3, 1, 35, 31),
    "one image": lambda: torch.rand(3, 5, 7).expand(1, 3, 5, 7),
    "channels last": lambda: torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last),
    "batch innermost": lambda: torch.rand(5, 6, 7).permute(2, 0, 1),
    "batch between": lambda: torch.rand(2, 3, 600).transpose(0, 1),
    "strided": lambda: torch.rand(3, 4, 10)[:, :, ::2],
    "expanded": lambda: torch.rand(1, 3, 8, 8).expand(3, 3, 8, 8),
}


def amounts(images: Tensor) -> list[float | Tensor]:
    """Return a float, and tensors (), (B,) and (B,) strided, of which some values are bad and mean NaN."""
    values: list[float | Tensor] = [8 / 255, torch.tensor(0.03, device=DEVICE)]
    if images.dim():
        per_image = torch.rand(len(images), 2, device=DEVICE) * 0.1
        if len(images) > 2:
            per_image[1] = -0.1
            per_image[2] = float("nan")
        values += [per_image[:, 0].contiguous(), per_image[:, 1]]
    return values


@pytest.mark.parametrize("name", IMAGES)
def test_elements_in_every_layout(name: str) -> None:
    images = IMAGES[name]().to(DEVICE)
    other = torch.empty(images.shape, device=DEVICE)
    origin, grad = (images + 0.05 * torch.randn(other.shape, device=DEVICE)).clamp(0, 1), torch.randn_like(other)
    rng = torch.tensor([2**40 + 3, 9], device=DEVICE)
    rngs = torch.randint(-(2**63), 2**63 - 1, (2, len(images)), device=DEVICE).T if images.dim() else rng
    for amount in amounts(images):
        what = f"{name}, epsilon {amount}"
        step, noise, alone = {}, {}, {}
        for backend in ("triton", "reference"):
            step[backend] = rmcla_fast.perturb_step(
                images, origin, grad, step_size=amount, epsilon=amount, backend=backend
            )
            noise[backend] = rmcla_fast.random_start(images, amount, rng=rng, clip=True, backend=backend)
            alone[backend] = rmcla_fast.random_start(images, amount, rng=rngs, clip=True, backend=backend)
        assert_equal(step["triton"], step["reference"], what)
        assert_equal(noise["triton"], noise["reference"], what)
        assert_equal(alone["triton"], alone["reference"], what)
        for out in (torch.empty_like(other), images.clone()):  # another layout for some images, and their own
            images_or_out = out.copy_(images)
            rmcla_fast.perturb_step(
                images_or_out, origin, grad, step_size=amount, epsilon=amount, out=out, backend="triton"
            )
            assert_same_bits(out, step["reference"], what)
            rmcla_fast.random_start(images, amount, rng=rng, clip=True, out=out, backend="triton")
            assert_same_bits(out, noise["reference"], what)
            rmcla_fast.random_start(images, amount, rng=rngs, clip=True, out=out, backend="triton")
            assert_same_bits(out, alone["reference"], what)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_elements_of_every_dtype(dtype: torch.dtype) -> None:
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 2.0, 0.5], device=DEVICE
    )
    images = torch.cat([torch.rand(1000, device=DEVICE), special.repeat(27)])
    origin = torch.cat([torch.rand(1000, device=DEVICE), special.repeat_interleave(3).repeat(9)])
    grad = torch.cat([torch.randn(1000, device=DEVICE), special.repeat_interleave(27)])
    images = images.to(dtype)
    for origin_dtype in (*FLOAT_DTYPES, torch.uint8):
        center = (origin.nan_to_num(0.5, 1, 0) * 255).to(torch.uint8) if origin_dtype == torch.uint8 else origin
        for grad_dtype in FLOAT_DTYPES:
            got, expected = (
                rmcla_fast.perturb_step(
                    images,
                    center.to(origin_dtype),
                    grad.to(grad_dtype),
                    step_size=2 / 255,
                    epsilon=8 / 255,
                    backend=backend,
                )
                for backend in ("triton", "reference")
            )
            assert_equal(got, expected, f"{dtype}, {origin_dtype}, {grad_dtype}")


@triton.jit
def _words_kernel(rng, block, out, STREAM: tl.constexpr):
    word0, word1, word2, word3 = philox_words(rng, 1, tl.load(block + tl.arange(0, 1)), STREAM)
    place = tl.arange(0, 1)
    tl.store(out + place, word0.to(tl.int64))
    tl.store(out + 1 + place, word1.to(tl.int64))
    tl.store(out + 2 + place, word2.to(tl.int64))
    tl.store(out + 3 + place, word3.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX_KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:

    def signed(low: int, high: int) -> int:
        value = low | high << 32
        return value - 2**64 if value >= 2**63 else value

    rng = torch.tensor([signed(*key), counter[2]], device=DEVICE)
    block = torch.tensor([signed(*counter[:2])], device=DEVICE)
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _words_kernel[(1,)](rng, block, out, STREAM=counter[3])
    assert tuple(out.tolist()) == words


@triton.jit
def _convert_kernel(source, target, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, narrow(widen(tl.load(source + place), DTYPE), target.dtype.element_ty))


def test_bfloat16_conversions() -> None:
    every = torch.arange(2**16, device=DEVICE).to(torch.int16).view(torch.bfloat16)
    wide = torch.empty(every.shape, device=DEVICE)
    _convert_kernel[(16,)](every, wide, DTYPE=tl.float32, BLOCK=4096)
    assert torch.equal(wide.nan_to_num(7.0), every.float().nan_to_num(7.0))
    near = every.float()[:, None].view(torch.int32) + torch.tensor(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32, device=DEVICE
    )
    near = near.view(torch.float32).contiguous().flatten()
    narrow_result = torch.empty(near.shape, dtype=torch.bfloat16, device=DEVICE)
    _convert_kernel[(96,)](near, narrow_result, DTYPE=tl.float32, BLOCK=4096)
    torch.testing.assert_close(narrow_result, near.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def test_the_stride_of_a_dimension_of_size_one_does_not_matter() -> None:
    first, second = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4).as_strided((1, 3, 4, 4), (7, 16, 4, 1))
    assert elements.same_layout(first, second)
    assert elements.in_layout_of(first, second) is second
    assert not elements.same_layout(first, first.contiguous(memory_format=torch.channels_last))
