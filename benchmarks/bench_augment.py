"""Time augment (gather, crop and flip of a batch of bytes) against the reference and plain code, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from cases import compare, compiled, compiled_reference
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import pad

import rmcla_fast
from rmcla_fast import reference
from rmcla_fast.ops.philox import STREAM_AUGMENTATION, philox_words

PADDING, FILL = 4, 128
SMALL, LARGE = (10_000, (3, 32, 32)), (256, (3, 224, 224))
CASES = [
    pytest.param(*size, layout, id=f"{size[1][1]}-{name}")
    for size in (SMALL, LARGE)
    for layout, name in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels_last"))
]


def crop(dataset: Tensor, index: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Return the crops of plain code, which does not look for indices outside the data set."""
    _, channels, height, width = dataset.shape
    images = pad(dataset[index], [PADDING] * 4, value=FILL)
    device = dataset.device
    rows = torch.arange(height, device=device) + down[:, None]
    columns = torch.arange(width, device=device).expand(len(index), width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + right[:, None]
    batch, channel = torch.arange(len(index), device=device), torch.arange(channels, device=device)
    return images[batch[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


@pytest.mark.parametrize(("images", "shape", "layout"), CASES)
def bench_augment(
    benchmark: BenchmarkFixture,
    device: torch.device,
    images: int,
    shape: tuple[int, ...],
    layout: torch.memory_format,
) -> None:
    generator = torch.Generator().manual_seed(0)
    dataset = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator).to(device)
    batch = 128 if shape[1] == 32 else 64
    index = torch.randperm(images, generator=generator)[:batch].to(device)
    rng = torch.tensor([1, 2], device=device)

    def by_reference(dataset: Tensor, index: Tensor, rng: Tensor) -> Tensor:
        return reference.augment(dataset, index, rng, PADDING, True, FILL, layout == torch.channels_last)

    def plain(dataset: Tensor, index: Tensor) -> Tensor:
        down, right = torch.randint(0, 2 * PADDING + 1, (2, batch), device=dataset.device)
        mirrored = torch.rand(batch, device=dataset.device) < 0.5
        return crop(dataset, index, down, right, mirrored).contiguous(memory_format=layout)

    wanted = by_reference(dataset, index, rng)
    words = philox_words(rng, torch.arange(batch, device=device), STREAM_AUGMENTATION)
    offsets = ((word * (2 * PADDING + 1)) >> 32 for word in words[:2])
    assert torch.equal(crop(dataset, index, *offsets, words[2] >> 31 == 1), wanted)

    def check(name: str, result: Tensor) -> None:
        assert result.stride() == wanted.stride()
        assert result.shape == wanted.shape if name.startswith("plain") else torch.equal(result, wanted)

    compiled_plain, reference_compiled = compiled(plain, wanted), compiled_reference(by_reference)
    rivals = {
        "ours": lambda: rmcla_fast.augment(dataset, index, rng=rng, memory_format=layout),
        "eager": lambda: by_reference(dataset, index, rng),
        "compile": lambda: reference_compiled(dataset, index, rng),
        "plain": lambda: plain(dataset, index),
        "plain, compiled": lambda: compiled_plain(dataset, index),
    }
    case = " x ".join(map(str, (batch, *shape))) + (", channels last" if layout == torch.channels_last else "")
    compare(benchmark, "augment", case, rivals, check, like=wanted, bytes_moved=2 * wanted.nbytes)
