"""perturb_step, random_start and augment: the CUDA kernels bit for bit as the reference, emulated and on a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES
from test_cuda_kernels import Kernels, _kernels, run, to  # noqa: F401  (a fixture)
from torch import Tensor

from rmcla_fast import reference

NAN = float("nan")
INFINITY = float("inf")
SHAPE = (3, 3, 5, 8)  # images of 120 elements, a multiple of the vectors of every dtype


def same_bits(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.stride() == expected.stride()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


def pixels(dtype: torch.dtype, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradient(dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    special = torch.tensor([0.0, -0.0, INFINITY, -INFINITY, NAN, 1e-300, -1e-300, 1e-40, -1e-7])
    grad.view(-1)[: len(special)] = special.double()
    return grad.to(dtype)


def numbers(shape: tuple[int, ...]) -> list[tuple[float, Tensor | None]]:
    """Return every form of a number: a float, a scalar tensor, one per image, one expanded to all images, bad ones."""
    each = torch.linspace(0.01, 0.2, shape[0])
    bad = each.clone()
    bad[0], bad[-1] = -0.1, NAN
    return [(0.05, None), (0.0, torch.tensor(0.03)), (0.0, each), (0.0, each[:1].expand(shape[0])), (0.0, bad)]


@pytest.mark.parametrize("images_dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("origin_dtype", [*FLOAT_DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("grad_dtype", FLOAT_DTYPES, ids=str)
def test_perturb_step_in_every_dtype(
    kernels: Kernels,
    images_dtype: torch.dtype,
    origin_dtype: torch.dtype,
    grad_dtype: torch.dtype,
) -> None:
    images, origin, grad = pixels(images_dtype), pixels(origin_dtype, seed=1), gradient(grad_dtype)
    images.view(-1)[20], images.view(-1)[21] = NAN, INFINITY
    if origin_dtype != torch.uint8:
        origin.view(-1)[30], origin.view(-1)[31] = NAN, -INFINITY
    for step, epsilon in zip(numbers(SHAPE), reversed(numbers(SHAPE)), strict=True):
        arguments = (images, origin, grad, *step, *epsilon, 0.0, 1.0)
        same_bits(run(kernels, "perturb_step", *arguments), reference.perturb_step(*arguments))


def layouts(tensor: Tensor) -> list[Tensor]:
    """Return the same values with several memory layouts: three dense ones, one with gaps, and one not aligned."""
    offset = tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    gaps = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)[..., : tensor.shape[-1]].copy_(tensor)
    batch_inside = tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    return [tensor, tensor.contiguous(memory_format=torch.channels_last), batch_inside, gaps, offset]


def test_perturb_step_in_every_layout(kernels: Kernels) -> None:
    images, origin, grad = pixels(torch.float32), pixels(torch.uint8, seed=1), gradient(torch.bfloat16)
    epsilon = (0.0, torch.linspace(0.01, 0.2, SHAPE[0]))
    for x, o, g in itertools.product(layouts(images), layouts(origin)[:2], layouts(grad)[:2] + layouts(grad)[4:]):
        expected = reference.perturb_step(x, o, g, 0.05, None, *epsilon)
        x, o, g = (keep_layout(kernels, tensor) for tensor in (x, o, g))
        same_bits(run(kernels, "perturb_step", x, o, g, 0.05, None, *epsilon, 0.0, 1.0), expected)
        for out in layouts(torch.full(SHAPE, NAN)):
            out = keep_layout(kernels, out)
            kernels.ops.perturb_step.out(x, o, g, 0.05, None, *to(kernels, *epsilon), 0.0, 1.0, out=out)
            assert torch.equal(out.cpu().isnan(), expected.isnan())
            assert torch.equal(out.cpu().nan_to_num(), expected.nan_to_num())


def keep_layout(kernels: Kernels, tensor: Tensor) -> Tensor:
    """Return the tensor on the device with the same strides and offset, which `.to` would not keep."""
    if kernels.device == "cpu":
        return tensor
    storage = torch.zeros(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype)
    storage.untyped_storage().copy_(tensor.untyped_storage())
    return storage.to(kernels.device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_perturb_step_may_write_into_any_input(kernels: Kernels, which: int, dtype: torch.dtype) -> None:
    inputs = [pixels(dtype), pixels(dtype, seed=1), gradient(dtype)]
    expected = reference.perturb_step(*inputs, 0.05, None, 0.1, None)
    inputs = to(kernels, *inputs)
    kernels.ops.perturb_step.out(*inputs, 0.05, None, 0.1, None, 0.0, 1.0, out=inputs[which])
    same_bits(inputs[which].cpu(), expected)


def test_perturb_step_may_write_into_memory_that_overlaps_an_input(kernels: Kernels) -> None:
    memory = torch.rand(1001)
    expected = reference.perturb_step(memory[:-1], memory[:-1], -memory[:-1], 0.05, None, 0.1, None)
    memory = to(kernels, memory)[0]
    kernels.ops.perturb_step.out(
        memory[:-1], memory[:-1], -memory[:-1], 0.05, None, 0.1, None, 0.0, 1.0, out=memory[1:]
    )
    same_bits(memory[1:].cpu(), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 1023, 1024, 1025, 4099, 1_000_001])
def test_tensors_of_many_sizes(kernels: Kernels, count: int) -> None:
    for dtype in FLOAT_DTYPES:
        images, grad = pixels(dtype, (count,)), torch.randn(count)
        arguments = (images, images, grad, 0.05, None, 0.1, None, 0.0, 1.0)
        same_bits(run(kernels, "perturb_step", *arguments), reference.perturb_step(*arguments))
        start = (images, 0.1, None, torch.tensor([2**40 + 7, 3]), 0.0, 1.0, True)
        same_bits(run(kernels, "random_start", *start), reference.random_start(*start))
    scalar = (torch.tensor(0.5), torch.tensor(0.4), torch.tensor(1.0), 0.05, None, 0.1, None, 0.0, 1.0)
    same_bits(run(kernels, "perturb_step", *scalar), reference.perturb_step(*scalar))


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("clip", [False, True])
def test_random_start_in_every_dtype_and_layout(kernels: Kernels, dtype: torch.dtype, clip: bool) -> None:
    images = pixels(dtype)
    if dtype != torch.uint8:
        images.view(-1)[:3] = torch.tensor([NAN, INFINITY, -INFINITY]).to(dtype)
    result_dtype = torch.float32 if dtype == torch.uint8 else dtype
    rng = torch.tensor([[-5, 0, 2**33 + 1], [2**62, 0, -1]])
    for x, seed_and_step, epsilon in itertools.product(
        layouts(images), (rng[0], rng[1], rng[0, :2], rng[:, 2]), numbers(SHAPE)
    ):
        seed_and_step = seed_and_step[-2:]
        arguments: tuple[Any, ...] = (*epsilon, seed_and_step, 0.0, 1.0, clip)
        expected = reference.random_start(x, *arguments)
        x = keep_layout(kernels, x)
        same_bits(run(kernels, "random_start", x, *arguments), expected)
        out = to(kernels, torch.full(SHAPE, NAN, dtype=result_dtype))[0]
        kernels.ops.random_start.out(x, *to(kernels, *arguments), out=out)
        assert torch.equal(out.cpu().nan_to_num(), expected.nan_to_num())
    if dtype != torch.uint8:
        arguments = (0.1, None, torch.tensor([1, 2]), 0.0, 1.0, clip)
        expected = reference.random_start(images, *arguments)
        in_place = to(kernels, images)[0].clone()
        kernels.ops.random_start.out(in_place, *to(kernels, *arguments), out=in_place)
        same_bits(in_place.cpu(), expected)


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, (3, 3, 5, 5), (3, 1, 7, 7), (1, 2, 3, 5), (300,), (2, 4099)], ids=str)
def test_random_start_with_an_rng_for_each_image(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Images of whole and of partial vectors, more of them than threads in a block, and larger than a block."""
    images = pixels(dtype, shape)
    result_dtype = torch.float32 if dtype == torch.uint8 else dtype
    generator = torch.Generator().manual_seed(3)
    states = torch.randint(-(2**63), 2**63 - 1, (2, shape[0], 3), generator=generator)
    rngs = (states[0, :, :2], states[:, :, 1].T, states[0, :1, :2].expand(shape[0], 2))
    every_layout = layouts(images) if len(shape) == 4 else [images]
    for place, (x, rng, epsilon) in enumerate(itertools.product(every_layout, rngs, numbers(shape))):
        arguments = (*epsilon, keep_layout(kernels, rng), 0.0, 1.0, place % 2 == 0)
        expected = reference.random_start(x, *epsilon, rng, *arguments[3:])
        x = keep_layout(kernels, x)
        same_bits(run(kernels, "random_start", x, *arguments), expected)
        block = torch.full((images.numel() + 32,), NAN, dtype=result_dtype, device=kernels.device)
        kernels.ops.random_start.out(x, *to(kernels, *arguments), out=block[16:-16].view(shape))
        assert torch.equal(block[16:-16].view(shape).cpu().nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
        assert bool(block[:16].isnan().all() & block[-16:].isnan().all())


def masks(shape: tuple[int, ...]) -> list[Tensor]:
    """Return masks of images (B, C, H, W) that repeat themselves in memory and that do not, with NaN and bad values."""
    generator = torch.Generator().manual_seed(5)
    b, c, h, w = shape
    forms = ((), (h, w), (c, 1, 1), (1, c, h, w), (b, 1, h, w), (b, 1, 1, 1), shape)
    floats = [torch.rand(form, generator=generator) for form in forms]
    bad = torch.rand(shape, generator=generator)
    bad.view(-1)[:4] = torch.tensor([NAN, 0.0, 1.0, 0.5])
    return [*floats, *(mask < 0.5 for mask in floats), bad, floats[1].double(), floats[4].bfloat16()]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 5, 5), (3, 3, 8, 8), (3, 2, 16, 40)], ids=str)
def test_masks(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    images, origin, grad = pixels(dtype, shape), pixels(torch.uint8, shape, seed=1), gradient(torch.float32, shape)
    epsilon = (0.0, torch.linspace(0.01, 0.2, shape[0]))
    rngs = (torch.tensor([-5, 2**33 + 1]), torch.tensor([[3, 4], [5, 6], [7, 8]])[: shape[0]])
    for x, mask in itertools.product(layouts(images), masks(shape)):
        arguments = (x, origin, grad, 0.05, None, *epsilon, 0.0, 1.0, mask)
        expected = reference.perturb_step(*arguments)
        on_device = keep_layout(kernels, x)
        same_bits(run(kernels, "perturb_step", on_device, *arguments[1:]), expected)
        block = torch.full((images.numel() + 32,), NAN, dtype=dtype, device=kernels.device)
        out = block[16:-16].view(shape)
        kernels.ops.perturb_step.out(on_device, *to(kernels, *arguments[1:]), out=out)
        assert torch.equal(out.cpu().nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
        assert bool(block[:16].isnan().all() & block[-16:].isnan().all())
        for rng in rngs:
            rule = (*epsilon, rng, 0.0, 1.0, False, mask)
            same_bits(run(kernels, "random_start", on_device, *rule), reference.random_start(x, *rule))
    start = (pixels(torch.uint8, shape), 0.1, None, rngs[1], 0.0, 1.0, True, masks(shape)[1])
    same_bits(run(kernels, "random_start", *start), reference.random_start(*start))


def test_a_value_of_a_mask_outside_the_range_gives_nan(kernels: Kernels) -> None:
    shape = (3, 3, 8, 8)
    images, grad, rng = pixels(torch.float32, shape), torch.randn(shape), torch.tensor([1, 2])
    for form in (shape, (8, 8), (3, 1, 1, 1)):
        good = torch.full(form, 0.5)
        bad = good.clone()
        bad.view(-1)[:3] = torch.tensor([-0.1, 1.5, INFINITY])
        outside = ((bad < 0) | (bad > 1)).expand(shape)
        step, start = (images, images, grad, 0.05, None, 0.1, None, 0.0, 1.0), (images, 0.1, None, rng, 0.0, 1.0, False)
        expected = reference.perturb_step(*step, good).masked_fill(outside, NAN)
        same_bits(run(kernels, "perturb_step", *step, bad), expected)
        expected = reference.random_start(*start, good).masked_fill(outside, NAN)
        same_bits(run(kernels, "random_start", *start, bad), expected)


def test_a_mask_may_be_written(kernels: Kernels) -> None:
    images, mask = pixels(torch.float32), pixels(torch.float32, seed=2)
    step = (images, images, gradient(torch.float32), 0.05, None, 0.1, None, 0.0, 1.0)
    start = (images, 0.1, None, torch.tensor([1, 2]), 0.0, 1.0, False)
    for name, arguments in (("perturb_step", step), ("random_start", start)):
        expected = getattr(reference, name)(*arguments, mask)
        (written,) = to(kernels, mask.clone())
        getattr(kernels.ops, name).out(*to(kernels, *arguments), written, out=written)
        same_bits(written.cpu(), expected)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (4, 1, 5, 7), (2, 3, 32, 40), (3, 2, 1, 1), (2, 5, 3, 4)], ids=str)
def test_augment(kernels: Kernels, shape: tuple[int, ...]) -> None:
    """Images of whole vectors and of parts of one, more in a block than it keeps plans of, and one over two blocks."""
    dataset = pixels(torch.uint8, shape)
    index = torch.randint(0, shape[0], (300,), generator=torch.Generator().manual_seed(1))
    rng = torch.tensor([[-5, 0], [2**33 + 1, 2**62 + 7]])
    counts = (300, 5) if dataset[0].numel() < 100 else (5,)
    for count, channels_last, number in itertools.product(counts, (False, True), range(5)):
        crop = ((4, 0, 1, 50, 2**30 - 1)[number], number != 1, (77, 0, 255, 128, 1)[number], channels_last)
        arguments = (dataset, index[:count], rng[:, number % 2], *crop)
        same_bits(run(kernels, "augment", *arguments), reference.augment(*arguments))


def test_augment_of_an_index_outside_the_data_set(kernels: Kernels) -> None:
    """It gives an image of `fill` beside good ones, and reads nothing; an index may have gaps."""
    dataset, rng = pixels(torch.uint8, (4, 3, 8, 8)), torch.tensor([1, 2])
    crop = (4, True, 99, False)
    index = torch.tensor([[3, 9], [-1, 9], [0, 9], [4, 9], [2**62, 9], [-(2**63), 9], [3, 9]])[:, 0]
    index = keep_layout(kernels, index)
    bad = torch.tensor([False, True, False, True, True, True, False])
    expected = reference.augment(dataset, torch.tensor([3, 0, 0, 0, 0, 0, 3]), rng, *crop)
    expected = expected.masked_fill(bad[:, None, None, None], 99)
    same_bits(run(kernels, "augment", dataset, index, rng, *crop), expected)
    for images, places in (((4, 3, 8, 8), 0), ((0, 3, 8, 8), 0), ((4, 3, 0, 8), 2)):
        arguments = (torch.zeros(images, dtype=torch.uint8), torch.zeros(places).long(), rng, *crop)
        assert run(kernels, "augment", *arguments).shape == (places, *images[1:])
    assert bool((run(kernels, "augment", dataset[:0], torch.zeros(2).long(), rng, *crop) == 99).all())


def test_a_step_never_leaves_the_ball(kernels: Kernels) -> None:
    for dtype in FLOAT_DTYPES:
        origin = pixels(dtype, (4, 3, 16, 16))
        epsilon = 8 / 255
        x = run(kernels, "random_start", origin, epsilon, None, torch.tensor([0, 1]), 0.0, 1.0, False)
        for _ in range(3):
            x = run(kernels, "perturb_step", x, origin, torch.randn(x.shape), 0.02, None, epsilon, None, 0.0, 1.0)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        least, most = (origin.to(wide) - epsilon).to(dtype), (origin.to(wide) + epsilon).to(dtype)
        assert ((x >= least) & (x <= most) & (x >= 0) & (x <= 1)).all()
