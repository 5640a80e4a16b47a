"""`augment_start`: crop, flip and start of every image from its own draw, the same bits on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import lay_out, pixels, poison_free_memory
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from test_random_start import SEEDS, rng_of
from test_random_start import expected as expected_start
from tolerances import assert_same_bits, assert_threads_change_no_bit
from torch import Tensor

import rmcla_fast

EPSILON = 8 / 255
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def dataset_of(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    return pixels(shape, torch.uint8, device, torch.Generator().manual_seed(seed))


def expected(
    dataset: Tensor,
    index: Tensor,
    words: tuple[int, int],
    epsilon: float | Tensor,
    padding: int,
    flip: bool,
    fill: float,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """From the oracle's generator and its crops; the start is that of the images as they are stored."""
    crops = torch.from_numpy(oracle.augment(dataset.cpu().numpy(), index.tolist(), *words, padding, flip, fill))
    images = torch.empty(crops.shape, dtype=dtype, memory_format=memory_format).copy_(crops)
    return images, expected_start(images, epsilon, *words)


def test_random_cases(backend: Backend) -> None:
    most = 5 if backend.interpreted else 9

    @settings(max_examples=backend.examples)
    @given(
        shape=st.tuples(
            st.integers(1, 4),
            st.sampled_from((1, 3, 2, 4)),
            st.integers(1, most),
            st.sampled_from((4, *range(1, most))),
        ),
        batch=st.sampled_from((3, 1, 2, 4, 5, 0)),
        padding=st.sampled_from((4, 0, 1, 2, 7, 100, 2**30 - 1)),
        flip=st.booleans(),
        fill=st.sampled_from((0.5, 0.0, 1.0, 0.4914, -3.3)),
        dtype=st.sampled_from(DTYPES),
        memory_format=st.sampled_from(LAYOUTS),
        budget=st.sampled_from(("float", "scalar tensor", "one an image")),
        words=st.sampled_from(SEEDS),
        seed=st.integers(0, 2**31),
    )
    def run(shape, batch, padding, flip, fill, dtype, memory_format, budget, words, seed) -> None:
        generator = torch.Generator().manual_seed(seed)
        dataset = pixels(shape, torch.uint8, backend.device, generator)
        index = torch.randint(0, shape[0], (batch,), generator=generator).to(backend.device)
        index = lay_out(index, "strided" if seed % 2 else "contiguous")
        epsilon: float | Tensor = 0.3 * torch.rand((), generator=generator).item()
        if budget != "float":
            epsilon = 0.3 * torch.rand((batch,) if budget == "one an image" else (), generator=generator)
            epsilon = lay_out(epsilon.to(backend.device), ("contiguous", "strided", "expanded")[seed % 3])
        crop = {"padding": padding, "flip": flip, "fill": fill, "dtype": dtype, "memory_format": memory_format}
        wanted = expected(dataset, index, words, epsilon, **crop)
        rng = lay_out(rng_of(*words, backend.device), "strided" if seed % 3 else "contiguous")
        before = dataset.clone()
        poison_free_memory(batch * dataset[0].numel(), backend.device)
        got = rmcla_fast.augment_start(dataset, index, rng=rng, epsilon=epsilon, **crop, backend=backend.name)
        for name, result, right in zip(("images", "start"), got, wanted, strict=True):
            assert_same_bits(result, right, name)
            assert result.stride() == wanted[0].stride(), name
            assert not result.requires_grad
        assert rng.tolist() == list(words), "rng was advanced"
        assert torch.equal(dataset, before), "the data set was written"

    run()


# Around vectors, Philox blocks and the parts and blocks that kernels work in; a line longer than any of them.
SIZES = [(5, 3, 32, 32), (3, 1, 28, 28), (2, 3, 40, 57), (64, 1, 8, 8), (3, 5, 17, 31), (1, 3, 2, 700), (2, 1, 3, 2049)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_bits_of_the_reference_and_of_random_start(backend: Backend, shape: tuple[int, ...]) -> None:
    if backend.interpreted and shape[-1] > 100:
        pytest.skip("a line that long takes the interpreter too long")
    dataset = dataset_of(shape, backend.device)
    index = torch.arange(shape[0] + 2, device=backend.device).flip(0) % shape[0]
    rng = rng_of(2**40 + 1, 17, backend.device)
    radii = torch.linspace(0, 0.2, len(index), device=backend.device)
    for dtype in DTYPES:
        for memory_format in LAYOUTS:
            for epsilon in (EPSILON, radii):
                crop = {"rng": rng, "epsilon": epsilon, "dtype": dtype, "memory_format": memory_format}
                images, start = rmcla_fast.augment_start(dataset, index, **crop, backend=backend.name)
                wanted = rmcla_fast.augment_start(dataset, index, **crop, backend="reference")
                assert_same_bits(images, wanted[0], "images")
                assert_same_bits(start, wanted[1], "start")
                assert images.stride() == wanted[0].stride()
                assert start.stride() == wanted[1].stride()
                again = rmcla_fast.random_start(images, epsilon, rng=rng, backend=backend.name)
                assert_same_bits(start, again, "start")


def test_without_crop_flip_and_radius_the_images_are_the_data_set(backend: Backend) -> None:
    """Every byte, and images that are asked for more than once."""
    dataset = torch.arange(512, device=backend.device).remainder(256).to(torch.uint8).view(2, 1, 16, 16)
    index = torch.tensor([1, 0, 0, 1, 1], device=backend.device)
    rule = {"rng": rng_of(0, 0, backend.device), "epsilon": 0.0, "padding": 0, "flip": False}
    images, start = rmcla_fast.augment_start(dataset, index, **rule, backend=backend.name)
    wanted = torch.from_numpy(dataset.cpu().numpy().astype(np.float32) / np.float32(255))[index.cpu()]
    assert_same_bits(images, wanted, "images")
    assert_same_bits(start, wanted, "start")


def test_the_layout_changes_the_noise_and_not_the_images(backend: Backend) -> None:
    dataset, index = dataset_of((4, 3, 6, 5), backend.device), torch.tensor([3, 1], device=backend.device)
    rule = {"rng": rng_of(3, 4, backend.device), "epsilon": 1.0, "backend": backend.name}
    plain, last = (rmcla_fast.augment_start(dataset, index, memory_format=layout, **rule) for layout in LAYOUTS)
    assert torch.equal(plain[0], last[0])
    assert last[1].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(plain[1], last[1])


def test_crops_and_flips_are_uniform_and_independent(backend: Backend) -> None:
    """Every (down, right, mirrored) of a padding of 1, told from the pixels of one image, equally often."""
    count = 900 if backend.interpreted else 18_000
    dataset = torch.arange(1, 10, dtype=torch.uint8, device=backend.device).view(1, 1, 3, 3)
    index = torch.zeros(count, dtype=torch.int64, device=backend.device)
    images, _ = rmcla_fast.augment_start(
        dataset, index, rng=rng_of(5, 0, backend.device), epsilon=0.0, padding=1, fill=0.0, backend=backend.name
    )
    kinds, counts = (images * 255).round().to(torch.int64).flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18
    chi_squared = float(((counts.double() - count / 18) ** 2 / (count / 18)).sum())
    assert chi_squared < 48  # 17 degrees of freedom: exceeded once in 10,000 seeds, and this seed is fixed
    unflipped, _ = rmcla_fast.augment_start(
        dataset, index, rng=rng_of(5, 0, backend.device), epsilon=0.0, padding=1, flip=False, backend=backend.name
    )
    assert len(unflipped.flatten(1).unique(dim=0)) == 9


def test_an_image_draws_by_its_place_alone(backend: Backend) -> None:
    """The same place and step give the same crop and noise in another batch; another step gives others."""
    dataset = dataset_of((6, 3, 8, 8), backend.device)
    index = torch.tensor([5, 2, 2, 0], device=backend.device)

    def drawn(index: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        rng = rng_of(seed, step, backend.device)
        return rmcla_fast.augment_start(dataset, index, rng=rng, epsilon=0.1, backend=backend.name)

    whole, part = drawn(index, 1, 2), drawn(index[:3], 1, 2)
    assert all(torch.equal(left[:3], right) for left, right in zip(whole, part, strict=True))
    assert not torch.equal(whole[0][1], whole[0][2]), "one draw for two places"
    for seed, step in ((1, 3), (2, 2), (1 + 2**32, 2)):
        assert not torch.equal(drawn(index, seed, step)[0], whole[0])
    assert torch.equal(drawn(index, 1, 2 + 2**32)[0], whole[0])  # of the step the low word counts


@pytest.mark.parametrize("bad", [-1, 4, 2**40, -(2**63)])
def test_an_index_that_is_no_image(backend: Backend, bad: int) -> None:
    """On a CPU a ValueError that names it; on a GPU, where the check would stall, an image of NaN beside good ones."""
    dataset = dataset_of((4, 3, 4, 4), backend.device)
    index = torch.tensor([3, bad, 0, bad], device=backend.device)
    rule = {"rng": rng_of(1, 2, backend.device), "epsilon": 0.1, "backend": backend.name}
    if backend.checks_label_values:
        with pytest.raises(ValueError, match=rf"^index must lie in \[0, 4\); got {bad} in row 1$"):
            rmcla_fast.augment_start(dataset, index, **rule)
        return
    good = rmcla_fast.augment_start(dataset, index.clamp(0, 3), **rule)
    for got, wanted in zip(rmcla_fast.augment_start(dataset, index, **rule), good, strict=True):
        assert bool(got[[1, 3]].isnan().all())
        assert torch.equal(got[[0, 2]], wanted[[0, 2]])


def test_a_bad_radius_in_a_tensor_is_a_start_of_nan(backend: Backend) -> None:
    dataset, index = dataset_of((4, 3, 4, 4), backend.device), torch.tensor([3, 1, 0], device=backend.device)
    rule = {"rng": rng_of(0, 1, backend.device), "backend": backend.name}
    good = rmcla_fast.augment_start(dataset, index, epsilon=0.1, **rule)
    epsilon = torch.tensor([0.1, -0.1, float("nan")], device=backend.device)
    images, start = rmcla_fast.augment_start(dataset, index, epsilon=epsilon, **rule)
    assert torch.equal(images, good[0])
    assert torch.equal(start[0], good[1][0])
    assert bool(start[1:].isnan().all())


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_nothing_to_do(backend: Backend, memory_format: torch.memory_format) -> None:
    """No image is asked for, of some and of none; images without a pixel."""
    for shape, count in (((4, 3, 5, 6), 0), ((0, 3, 5, 6), 0), ((4, 3, 0, 6), 2), ((4, 3, 5, 0), 2), ((4, 0, 5, 6), 2)):
        dataset = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
        index = torch.zeros(count, dtype=torch.int64, device=backend.device)
        rule = {"rng": rng_of(0, 1, backend.device), "memory_format": memory_format, "backend": backend.name}
        for result in rmcla_fast.augment_start(dataset, index, epsilon=torch.ones(count).to(index.device), **rule):
            assert result.shape == (count, *shape[1:])
            assert result.dtype == torch.float32


def test_threads_change_no_bit(backend: Backend) -> None:
    dataset = dataset_of((4, 3, 8, 8) if backend.interpreted else (64, 3, 32, 32), backend.device)
    index = torch.arange(len(dataset), device=backend.device)
    rule = {"rng": rng_of(5, 6, backend.device), "epsilon": 0.1, "backend": backend.name}
    assert_threads_change_no_bit(lambda: rmcla_fast.augment_start(dataset, index, **rule))


def test_opcheck(backend: Backend) -> None:
    operator, rng = backend.operator("augment_start"), rng_of(1, 2, backend.device)
    assert operator.overloads() == ["default"]
    index = torch.tensor([1, 0, 1], device=backend.device)
    epsilons = torch.tensor([0.1, 0.2, 0.3], device=backend.device)
    for shape in ((2, 3, 4, 4), (2, 1, 5, 4), (2, 1, 1, 1)):  # one channel: the layouts differ in strides alone
        dataset = dataset_of(shape, backend.device)
        for dtype, channels_last in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, True)):
            crop = (4, True, 0.5, dtype, channels_last)
            torch.library.opcheck(operator.default, (dataset, index, rng, EPSILON, None, *crop))
            torch.library.opcheck(operator.default, (dataset, index, rng, 0.0, epsilons, *crop))


def test_compiles_whole(backend: Backend) -> None:
    """No graph break, the same bits and strides, for any batch; a radius in a tensor compiles once for all values."""
    torch._dynamo.reset()
    compilations = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        return graph.forward

    def function(dataset: Tensor, index: Tensor, rng: Tensor, radius: Tensor) -> list[Tensor]:
        rule = {"rng": rng, "backend": backend.name}
        last = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
        images, start = rmcla_fast.augment_start(dataset, index, epsilon=radius, **rule, **last)
        return [
            images,
            start,
            *rmcla_fast.augment_start(dataset, index, epsilon=EPSILON, padding=2, flip=False, **rule),
        ]

    dataset, rng = dataset_of((5, 1, 4, 4), backend.device), rng_of(1, 2, backend.device)
    for compiler in (counting, "inductor"):
        compiled = torch.compile(function, fullgraph=True, backend=compiler)
        for batch, radius in ((6, 0.1), (6, 0.2), (6, 0.3), (5, 0.3), (4, 0.2)):
            index = torch.arange(batch, device=backend.device) % 5
            arguments = (dataset, index, rng, torch.tensor(radius, device=backend.device))
            for place, (got, wanted) in enumerate(zip(compiled(*arguments), function(*arguments), strict=True)):
                assert_same_bits(got, wanted, f"result {place}")
                assert got.stride() == wanted.stride(), place
        assert compilations == 2  # for a batch of six, and for any
