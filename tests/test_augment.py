"""`augment`: every image has a random crop and flip of its own, with the same bits on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from adversarial_inputs import lay_out, pixels, poison_free_memory
from conftest import Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from test_random_start import SEEDS, rng_of
from tolerances import assert_same_bits, assert_threads_change_no_bit
from torch import Tensor

import rmcla_fast

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def dataset_of(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    return pixels(shape, torch.uint8, device, torch.Generator().manual_seed(seed))


def expected(
    dataset: Tensor,
    index: Tensor,
    words: tuple[int, int],
    padding: int,
    flip: bool,
    fill: int,
    memory_format: torch.memory_format,
) -> Tensor:
    """Return the oracle's crops in this layout."""
    crops = torch.from_numpy(oracle.augment(dataset.cpu().numpy(), index.tolist(), *words, padding, flip, fill))
    return torch.empty(crops.shape, dtype=torch.uint8, memory_format=memory_format).copy_(crops)


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
        fill=st.sampled_from((128, 0, 255, 1)),
        memory_format=st.sampled_from(LAYOUTS),
        words=st.sampled_from(SEEDS),
        seed=st.integers(0, 2**31),
    )
    def run(shape, batch, padding, flip, fill, memory_format, words, seed) -> None:
        generator = torch.Generator().manual_seed(seed)
        dataset = pixels(shape, torch.uint8, backend.device, generator)
        index = torch.randint(0, shape[0], (batch,), generator=generator).to(backend.device)
        index = lay_out(index, "strided" if seed % 2 else "contiguous")
        crop = {"padding": padding, "flip": flip, "fill": fill, "memory_format": memory_format}
        wanted = expected(dataset, index, words, **crop)
        rng = lay_out(rng_of(*words, backend.device), "strided" if seed % 3 else "contiguous")
        before = dataset.clone()
        poison_free_memory(batch * dataset[0].numel(), backend.device)
        images = rmcla_fast.augment(dataset, index, rng=rng, **crop, backend=backend.name)
        assert_same_bits(images, wanted, "images")
        assert images.stride() == wanted.stride()
        assert rng.tolist() == list(words), "rng was advanced"
        assert torch.equal(dataset, before), "the data set was written"

    run()


# Sizes close to those of vectors and of the blocks of kernels, and a line that is longer than any of them.
SIZES = [(5, 3, 32, 32), (3, 1, 28, 28), (2, 3, 40, 57), (64, 1, 8, 8), (3, 5, 17, 31), (1, 3, 2, 700), (2, 1, 3, 2049)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_backend_gives_the_bits_of_the_reference(backend: Backend, shape: tuple[int, ...]) -> None:
    if backend.interpreted and shape[-1] > 100:
        pytest.skip("a line that long takes the interpreter too long")
    dataset = dataset_of(shape, backend.device)
    index = torch.arange(shape[0] + 2, device=backend.device).flip(0) % shape[0]
    rng = rng_of(2**40 + 1, 17, backend.device)
    for memory_format in LAYOUTS:
        images = rmcla_fast.augment(dataset, index, rng=rng, memory_format=memory_format, backend=backend.name)
        wanted = rmcla_fast.augment(dataset, index, rng=rng, memory_format=memory_format, backend="reference")
        assert_same_bits(images, wanted, "images")
        assert images.stride() == wanted.stride()


def test_without_crop_and_flip_images_are_copied(backend: Backend) -> None:
    """The images have every byte, and some are copied more than once."""
    dataset = torch.arange(512, device=backend.device).remainder(256).to(torch.uint8).view(2, 1, 16, 16)
    index = torch.tensor([1, 0, 0, 1, 1], device=backend.device)
    rule = {"rng": rng_of(0, 0, backend.device), "padding": 0, "flip": False}
    assert torch.equal(rmcla_fast.augment(dataset, index, **rule, backend=backend.name), dataset[index])


def test_the_layout_does_not_change_the_images(backend: Backend) -> None:
    dataset, index = dataset_of((4, 3, 6, 5), backend.device), torch.tensor([3, 1], device=backend.device)
    rule = {"rng": rng_of(3, 4, backend.device), "backend": backend.name}
    plain, last = (rmcla_fast.augment(dataset, index, memory_format=layout, **rule) for layout in LAYOUTS)
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_crops_and_flips_are_uniform_and_independent(backend: Backend) -> None:
    """With a padding of 1, every (down, right, mirrored) occurs equally often. The pixels show which one it is."""
    count = 900 if backend.interpreted else 18_000
    dataset = torch.arange(1, 10, dtype=torch.uint8, device=backend.device).view(1, 1, 3, 3)
    index = torch.zeros(count, dtype=torch.int64, device=backend.device)
    rule = {"rng": rng_of(5, 0, backend.device), "padding": 1, "backend": backend.name}
    images = rmcla_fast.augment(dataset, index, fill=0, **rule)
    kinds, counts = images.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18
    chi_squared = float(((counts.double() - count / 18) ** 2 / (count / 18)).sum())
    assert chi_squared < 48  # 17 degrees of freedom: exceeded once in 10,000 seeds, and this seed is fixed
    unflipped = rmcla_fast.augment(dataset, index, flip=False, **rule)
    assert len(unflipped.flatten(1).unique(dim=0)) == 9


def test_a_crop_depends_only_on_the_rng_and_the_place_in_the_batch(backend: Backend) -> None:
    """An image in the same place gets the same crop in a smaller batch. Another seed or step gives another crop."""
    dataset = dataset_of((6, 3, 8, 8), backend.device)
    index = torch.tensor([5, 2, 2, 0], device=backend.device)

    def drawn(index: Tensor, seed: int, step: int) -> Tensor:
        return rmcla_fast.augment(dataset, index, rng=rng_of(seed, step, backend.device), backend=backend.name)

    whole = drawn(index, 1, 2)
    assert torch.equal(whole[:3], drawn(index[:3], 1, 2))
    assert not torch.equal(whole[1], whole[2]), "two places have the same crop"
    for seed, step in ((1, 3), (2, 2), (1 + 2**32, 2)):
        assert not torch.equal(drawn(index, seed, step), whole)
    assert torch.equal(drawn(index, 1, 2 + 2**32), whole)  # only the low word of the step counts


@pytest.mark.parametrize("bad", [-1, 4, 2**40, -(2**63)])
def test_an_index_outside_the_data_set(backend: Backend, bad: int) -> None:
    """On a CPU it raises a ValueError that names it. On a GPU, which the check would stall, the image is all `fill`."""
    dataset = dataset_of((4, 3, 4, 4), backend.device)
    index = torch.tensor([3, bad, 0, bad], device=backend.device)
    rule = {"rng": rng_of(1, 2, backend.device), "fill": 77, "backend": backend.name}
    if backend.checks_label_values:
        with pytest.raises(ValueError, match=rf"^index must lie in \[0, 4\); got {bad} in row 1$"):
            rmcla_fast.augment(dataset, index, **rule)
        return
    good = rmcla_fast.augment(dataset, index.clamp(0, 3), **rule)
    got = rmcla_fast.augment(dataset, index, **rule)
    assert bool((got[[1, 3]] == 77).all())
    assert torch.equal(got[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_empty_batches_and_images(backend: Backend, memory_format: torch.memory_format) -> None:
    """The index is empty, with and without images in the data set, or the images have no pixels."""
    for shape, count in (((4, 3, 5, 6), 0), ((0, 3, 5, 6), 0), ((4, 3, 0, 6), 2), ((4, 3, 5, 0), 2), ((4, 0, 5, 6), 2)):
        dataset = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
        index = torch.zeros(count, dtype=torch.int64, device=backend.device)
        rule = {"rng": rng_of(0, 1, backend.device), "memory_format": memory_format, "backend": backend.name}
        images = rmcla_fast.augment(dataset, index, **rule)
        assert images.shape == (count, *shape[1:])
        assert images.dtype == torch.uint8


def test_threads_change_no_bit(backend: Backend) -> None:
    dataset = dataset_of((4, 3, 8, 8) if backend.interpreted else (64, 3, 32, 32), backend.device)
    index = torch.arange(len(dataset), device=backend.device)
    rng = rng_of(5, 6, backend.device)
    assert_threads_change_no_bit(lambda: (rmcla_fast.augment(dataset, index, rng=rng, backend=backend.name),))


def test_opcheck(backend: Backend) -> None:
    operator, rng = backend.operator("augment"), rng_of(1, 2, backend.device)
    assert operator.overloads() == ["default"]
    index = torch.tensor([1, 0, 1], device=backend.device)
    for shape in ((2, 3, 4, 4), (2, 1, 5, 4), (2, 1, 1, 1)):  # with one channel the layouts differ only in strides
        dataset = dataset_of(shape, backend.device)
        for channels_last in (False, True):
            torch.library.opcheck(operator.default, (dataset, index, rng, 4, True, 128, channels_last))


def test_augment_compiles_without_a_graph_break(backend: Backend) -> None:
    """The bits and strides of the results are those of eager code, for any size of the batch."""
    torch._dynamo.reset()
    compilations = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        return graph.forward

    def function(dataset: Tensor, index: Tensor, rng: Tensor) -> list[Tensor]:
        rule = {"rng": rng, "backend": backend.name}
        return [
            rmcla_fast.augment(dataset, index, memory_format=torch.channels_last, **rule),
            rmcla_fast.augment(dataset, index, padding=2, flip=False, **rule),
        ]

    dataset, rng = dataset_of((5, 1, 4, 4), backend.device), rng_of(1, 2, backend.device)
    for compiler in (counting, "inductor"):
        compiled = torch.compile(function, fullgraph=True, backend=compiler)
        for batch in (6, 5, 4):
            arguments = (dataset, torch.arange(batch, device=backend.device) % 5, rng)
            for place, (got, wanted) in enumerate(zip(compiled(*arguments), function(*arguments), strict=True)):
                assert_same_bits(got, wanted, f"result {place}")
                assert got.stride() == wanted.stride(), place
        assert compilations == 2  # one for a batch of six, and one for any size
