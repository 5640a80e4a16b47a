"""`random_start`: the published generator, and noise with the same bits on every backend."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import (
    FLOAT_DTYPES,
    IMAGE_LAYOUTS,
    MANY,
    image_shapes,
    lay_out,
    pixels,
    poison_free_memory,
    poisoned,
)
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_same_bits, assert_threads_change_no_bit
from torch import Tensor

import rmcla_fast
from rmcla_fast.ops.philox import philox4x32

EPSILON = 8 / 255
SEEDS = [
    (0, 0),
    (1, 2),
    (2**32 + 7, 3),
    (-1, 5),
    (-(2**63), 2**32 + 9),
    (2**63 - 1, -3),
    (0x299F31D0A4093822, 0x13198A2E),
]


def rng_of(seed: int, step: int, device: torch.device) -> Tensor:
    return torch.tensor([seed, step], dtype=torch.int64, device=device)


def memory_order(images: Tensor) -> list[int]:
    """Return the dimensions, outermost in memory first; if the images are not dense, in their own order."""
    dense = torch.empty_like(images).stride() == images.stride()
    return sorted(range(images.dim()), key=lambda d: -images.stride(d)) if dense else list(range(images.dim()))


def expected(
    images: Tensor,
    epsilon: float | Tensor,
    seed: int,
    step: int,
    bounds: tuple[float, float] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the oracle's result, with one rounding after each product and one after the sum."""
    kind = np.float64 if images.dtype == torch.float64 else np.float32
    flat = np.array([oracle.random_unit(seed, step, i) for i in range(images.numel())], dtype=np.float32)
    order = memory_order(images)
    unit = flat.reshape([images.shape[d] for d in order]).transpose(np.argsort(order)) if order else flat.reshape(())
    radius = np.asarray(epsilon.cpu() if isinstance(epsilon, Tensor) else epsilon, dtype=np.float32)
    if radius.ndim:
        radius = radius.reshape(-1, *[1] * (images.dim() - 1))
    if mask is not None:
        radius = radius * mask.cpu().double().numpy().astype(np.float32)
    if images.dtype == torch.uint8:
        values = images.cpu().numpy().astype(np.float32) / np.float32(255)
    else:
        values = images.cpu().to(torch.float64).numpy().astype(kind)
    start = values + (radius * unit).astype(np.float32)
    if bounds is not None:
        start = np.minimum(np.maximum(start, kind(bounds[0])), kind(bounds[1]))
    return torch.from_numpy(np.asarray(start)).to(torch.float32 if images.dtype == torch.uint8 else images.dtype)


def expected_alone(
    images: Tensor,
    epsilon: float | Tensor,
    rng: Tensor,
    bounds: tuple[float, float] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the oracle's results for one image after another, each with its row of `rng`, and the result's strides."""
    budgets = epsilon.expand(len(images)).split(1) if isinstance(epsilon, Tensor) else [epsilon] * len(images)
    masks = [None] * len(images) if mask is None else mask.expand(images.shape).split(1)
    parts = zip(images.split(1), budgets, rng.tolist(), masks, strict=True) if len(images) else ()
    results = [expected(image, budget, *state, bounds, share) for image, budget, state, share in parts]
    if len(images) < 2 or not images.numel():
        dense = torch.empty_like(images).stride() == images.stride()
        strides = images.stride() if dense else images.contiguous().stride()
    else:
        image = images[:1]
        dense = torch.empty_like(image).stride() == image.stride()
        strides = (image.numel(), *(image if dense else image.contiguous()).stride()[1:])
    kind = torch.float32 if images.dtype == torch.uint8 else images.dtype
    return torch.cat(results) if results else torch.empty(images.shape, dtype=kind), strides


@pytest.mark.parametrize(("counter", "key", "answer"), oracle.PHILOX_KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    assert oracle.philox4x32(counter, key) == answer
    words = philox4x32([torch.tensor(word) for word in counter], [torch.tensor(word) for word in key])
    assert tuple(int(word) for word in words) == answer


def test_the_public_function_gives_a_published_answer(backend: Backend) -> None:
    """With seed and step 0, the first four pixels are the published words for the zero counter and key."""
    images = torch.zeros(4, device=backend.device)
    result = rmcla_fast.random_start(images, 1.0, rng=rng_of(0, 0, backend.device), backend=backend.name)
    words = oracle.PHILOX_KNOWN_ANSWERS[0][2]
    assert result.tolist() == [2 * ((word >> 8) * 2.0**-24) - 1 for word in words]


@pytest.mark.parametrize(("seed", "step"), SEEDS)
def test_seeds_and_steps_of_64_bits(backend: Backend, seed: int, step: int) -> None:
    """Both words of the seed are the key, and only the low word of the step is used. Both numbers may be negative."""
    images = torch.full((2, 3, 3, 3), 0.5, device=backend.device)
    result = rmcla_fast.random_start(images, EPSILON, rng=rng_of(seed, step, backend.device), backend=backend.name)
    assert_same_bits(result, expected(images, EPSILON, seed, step), "result")
    same_low_word = rng_of(seed, (step + 2**32) % 2**32, backend.device)
    assert torch.equal(rmcla_fast.random_start(images, EPSILON, rng=same_low_word, backend=backend.name), result)


def test_random_shapes(backend: Backend) -> None:
    @settings(max_examples=backend.examples)
    @given(
        shape=image_shapes(backend.interpreted),
        dtype=st.sampled_from((*FLOAT_DTYPES, torch.uint8)),
        layout=st.sampled_from(IMAGE_LAYOUTS),
        budget=st.sampled_from(("float", "scalar tensor", "per image")),
        bounds=st.sampled_from((None, None, (0.0, 1.0), (-0.5, 0.7), (0.3, 0.3))),
        out=st.sampled_from((None, None, "contiguous", "transposed", "strided", "images")),
        words=st.sampled_from(SEEDS),
        rng_per_image=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def run(shape, dtype, layout, budget, bounds, out, words, rng_per_image, seed) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = lay_out(pixels(shape, dtype, backend.device, generator), layout)
        epsilon: float | Tensor = 0.3 * torch.rand((), generator=generator).item()
        if budget == "scalar tensor" or (budget == "per image" and shape):
            epsilon = 0.3 * torch.rand(shape[:1] if budget == "per image" else (), generator=generator)
            epsilon = lay_out(epsilon.to(backend.device), ("contiguous", "strided", "expanded")[seed % 3])
        rng = rng_of(*words, backend.device)
        if rng_per_image and shape:
            rng = rng + torch.arange(shape[0], device=backend.device)[:, None] * 2**31
            wanted, strides = expected_alone(images, epsilon, rng, bounds)
        else:
            wanted = expected(images, epsilon, *words, bounds)
            dense = torch.empty_like(images).stride() == images.stride()
            strides = images.stride() if dense else images.contiguous().stride()
        states = rng.tolist()
        buffer = None
        if out == "images" and layout != "expanded" and dtype != torch.uint8:
            buffer = images
        elif out is not None:
            buffer = lay_out(poisoned(shape, wanted.dtype, backend.device), out if out != "images" else "contiguous")
        rng = lay_out(rng, ("contiguous", "strided", "transposed", "offset")[seed % 4])
        poison_free_memory(images.numel(), backend.device)
        clip = {} if bounds is None else {"clip": True, "lower": bounds[0], "upper": bounds[1]}
        result = rmcla_fast.random_start(images, epsilon, rng=rng, out=buffer, **clip, backend=backend.name)
        assert_same_bits(result, wanted, "result")
        assert not result.requires_grad
        assert rng.tolist() == states, "rng was advanced"
        assert result is buffer if buffer is not None else result.stride() == strides

    run()


def test_noise_follows_memory_order(backend: Backend) -> None:
    """The same images in another layout get other noise; images that are not dense are made contiguous first."""
    rng = rng_of(3, 4, backend.device)
    images = torch.zeros(2, 3, 4, 5, device=backend.device)
    plain = rmcla_fast.random_start(images, 1.0, rng=rng, backend=backend.name)
    last = rmcla_fast.random_start(lay_out(images, "channels_last"), 1.0, rng=rng, backend=backend.name)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.permute(0, 2, 3, 1).flatten(), plain.flatten())
    strided = rmcla_fast.random_start(lay_out(images, "strided"), 1.0, rng=rng, backend=backend.name)
    assert strided.is_contiguous()
    assert torch.equal(strided, plain)


# Batches in every kind of memory: whole and partial vectors, images larger and smaller than what a thread computes at a
# time, the batch outermost, innermost and between, and images whose own memory has no gaps while the batch's has.
BATCHES = {
    "whole vectors": lambda: torch.rand(5, 3, 8, 8),
    "odd": lambda: torch.rand(5, 3, 5, 5),
    "odd, one channel": lambda: torch.rand(4, 1, 7, 7),
    "one element each": lambda: torch.rand(9),
    "larger than a part": lambda: torch.rand(2, 1, 61, 35),
    "channels last": lambda: torch.rand(3, 3, 5, 5).contiguous(memory_format=torch.channels_last),
    "every second, channels last": lambda: torch.rand(6, 3, 5, 5).contiguous(memory_format=torch.channels_last)[::2],
    "one repeated, channels last": lambda: torch.rand(1, 5, 5, 3).permute(0, 3, 1, 2).expand(3, -1, -1, -1),
    "windows": lambda: torch.rand(60).as_strided((4, 3, 5), (7, 5, 1)),
    "batch innermost": lambda: torch.rand(3, 5, 7, 4).permute(3, 0, 1, 2),
    "batch between": lambda: torch.rand(3, 4, 5, 5).transpose(0, 1),
    "gaps": lambda: torch.rand(3, 3, 5, 10)[..., ::2],
    "one image": lambda: torch.rand(1, 5, 5, 3).permute(0, 3, 1, 2),
    "no image": lambda: torch.rand(0, 3, 5, 5),
    "no element": lambda: torch.rand(3, 0, 5),
}


@pytest.mark.parametrize("name", BATCHES)
def test_an_image_gets_the_noise_that_it_gets_alone(backend: Backend, name: str) -> None:
    """With an rng for each image, the noise of an image depends on no other image, and on the whole batch's order."""
    images = BATCHES[name]().to(backend.device)
    count = len(images)
    states = torch.randint(-(2**63), 2**63 - 1, (2, count, 2), generator=torch.Generator().manual_seed(1))
    for rng in (states[0], states[:, :, 1].T, states[0, :1].expand(count, 2)):
        for epsilon in (EPSILON, torch.rand(count, device=backend.device)):
            rng = rng.to(backend.device)
            result = rmcla_fast.random_start(images, epsilon, rng=rng, backend=backend.name)
            assert result.shape == images.shape
            assert_same_bits(result, expected_alone(images, epsilon, rng)[0], "result")
            for b in range(count):
                budget = epsilon[b : b + 1] if isinstance(epsilon, Tensor) else epsilon
                alone = rmcla_fast.random_start(images[b : b + 1], budget, rng=rng[b], backend=backend.name)
                assert torch.equal(result[b : b + 1], alone)
                assert count == 1 or not alone.numel() or result.stride()[1:] == alone.stride()[1:]
            out = poisoned(images.shape, result.dtype, backend.device)
            rmcla_fast.random_start(images, epsilon, rng=rng, out=out, backend=backend.name)
            assert torch.equal(out, result)


def test_noise_depends_only_on_the_step_and_the_seed(backend: Backend) -> None:
    images = torch.rand(2, 3, 8, 8, device=backend.device)
    first, again = (
        rmcla_fast.random_start(images, 0.1, rng=rng_of(1, 2, backend.device), backend=backend.name) for _ in range(2)
    )
    assert torch.equal(first, again)
    for other in ((1, 3), (2, 2), (1 + 2**32, 2)):
        noise = rmcla_fast.random_start(images, 0.1, rng=rng_of(*other, backend.device), backend=backend.name)
        assert float((noise == first).float().mean()) < 0.05


def test_noise_is_uniform_in_the_ball(backend: Backend) -> None:
    count = 10_000 if backend.interpreted else MANY
    images = torch.zeros(count, device=backend.device)
    noise = (
        rmcla_fast.random_start(images, EPSILON, rng=rng_of(11, 0, backend.device), backend=backend.name).double().cpu()
    )
    radius = float(torch.tensor(EPSILON, dtype=torch.float32))
    assert float(noise.abs().max()) <= radius
    deviation = radius / math.sqrt(3)
    assert abs(float(noise.mean())) < 5 * deviation / math.sqrt(count)
    assert abs(float(noise.std()) / deviation - 1) < 5 / math.sqrt(count)
    counts = torch.histc(noise, bins=16, min=-radius, max=radius)
    chi_squared = float(((counts - count / 16) ** 2 / (count / 16)).sum())
    assert chi_squared < 45  # with 15 degrees of freedom exceeded once in 10,000 seeds; this seed is fixed
    assert float(noise.max()) > 0.99 * radius
    assert float(noise.min()) < -0.99 * radius


def test_a_million_and_one_elements(backend: Backend) -> None:
    """The whole result equals that of the reference, and some elements equal the oracle's."""
    count = 4_099 if backend.interpreted else MANY
    images = pixels((count,), torch.float32, backend.device, torch.Generator().manual_seed(0))
    rng = rng_of(2**40 + 1, 17, backend.device)
    out = poisoned((count,), torch.float32, backend.device)
    result = rmcla_fast.random_start(images, EPSILON, rng=rng, backend=backend.name)
    rmcla_fast.random_start(images, EPSILON, rng=rng, out=out, backend=backend.name)
    assert torch.equal(out, result)
    assert_same_bits(result, rmcla_fast.random_start(images, EPSILON, rng=rng, backend="reference"), "result")
    for index in [0, 1, 2, 3, 4, count // 3, count // 2, count - 5, count - 2, count - 1]:
        noise = np.float32(EPSILON) * oracle.random_unit(2**40 + 1, 17, index)
        assert result[index].item() == np.float32(images[index].item()) + noise


def test_every_byte_of_uint8_images(backend: Backend) -> None:
    images = torch.arange(256, dtype=torch.uint8, device=backend.device)
    result = rmcla_fast.random_start(images, 0.0, rng=rng_of(0, 0, backend.device), backend=backend.name)
    assert_same_bits(result, torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255)), "result")


def test_a_pixel_range_beyond_float32_clips_nothing(backend: Backend) -> None:
    images = pixels((3, 5), torch.float32, backend.device, torch.Generator().manual_seed(0))
    rule = {"rng": rng_of(1, 2, backend.device), "backend": backend.name}
    clipped = rmcla_fast.random_start(images, 0.1, lower=-1e300, upper=1e300, clip=True, **rule)
    assert torch.equal(clipped, rmcla_fast.random_start(images, 0.1, **rule))


def test_nan_pixels_and_bad_radii_give_nan(backend: Backend) -> None:
    """NaN stays in its element, with and without clip; a negative or NaN radius in a tensor gives NaN in that image."""
    images = torch.rand(3, 2, 5, 5, device=backend.device)
    images[0, 1, 2, 3] = float("nan")
    for clip in (False, True):
        result = rmcla_fast.random_start(images, 0.1, rng=rng_of(0, 1, backend.device), clip=clip, backend=backend.name)
        assert torch.equal(result.isnan(), images.isnan())
        epsilon = torch.tensor([0.1, -0.1, float("nan")], device=backend.device)
        result = rmcla_fast.random_start(
            images, epsilon, rng=rng_of(0, 1, backend.device), clip=clip, backend=backend.name
        )
        assert torch.equal(result[0].isnan(), images[0].isnan())
        assert bool(result[1:].isnan().all())


def test_repeated_calls_and_threads_change_no_bit(backend: Backend) -> None:
    images = torch.rand((2, 3, 8, 8) if backend.interpreted else (16, 3, 64, 64), device=backend.device)
    rng = rng_of(5, 6, backend.device)
    assert_threads_change_no_bit(lambda: rmcla_fast.random_start(images, 0.1, rng=rng, backend=backend.name))
    small = torch.rand((40, 1, 1, 3) if backend.interpreted else (4000, 3, 5, 5), device=backend.device)
    rngs = torch.arange(2 * len(small), device=backend.device).view(-1, 2)
    for batch, each in ((images, rngs[: len(images)]), (small, rngs)):
        assert_threads_change_no_bit(
            lambda batch=batch, each=each: rmcla_fast.random_start(batch, 0.1, rng=each, backend=backend.name)
        )


def test_the_result_never_requires_grad(backend: Backend) -> None:
    images = torch.rand(2, 3, device=backend.device, requires_grad=True)
    assert not rmcla_fast.random_start(
        images, 0.1, rng=rng_of(0, 0, backend.device), backend=backend.name
    ).requires_grad


def test_opcheck(backend: Backend) -> None:
    operator, rng = backend.operator("random_start"), rng_of(1, 2, backend.device)
    epsilons = torch.tensor([0.1, 0.2], device=backend.device)
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        values = pixels((2, 3, 4, 4), dtype, backend.device, torch.Generator().manual_seed(0))
        for layout in ("contiguous", "channels_last", "strided"):
            for state in (rng, rng.expand(2, 2)):
                torch.library.opcheck(operator.default, (lay_out(values, layout), 0.0, epsilons, state, 0.0, 1.0, True))
        out = torch.empty(2, 3, 4, 4, dtype=torch.float32 if dtype == torch.uint8 else dtype, device=backend.device)
        for state in (rng, rng.expand(2, 2)):
            torch.library.opcheck(operator.out, (values, EPSILON, None, state, 0.0, 1.0, False), {"out": out})
