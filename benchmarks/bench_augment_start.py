"""augment_start against the reference and plain code, eager and compiled: gather, crop, flip and start of one batch."""

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

EPSILON, PADDING, FILL = 8 / 255, 4, 0.5
SMALL, LARGE = (10_000, (3, 32, 32)), (256, (3, 224, 224))
CASES = [
    pytest.param(*size, dtype, layout, id=f"{size[1][1]}-{str(dtype)[6:]}-{name}")
    for size in (SMALL, LARGE)
    for dtype in (torch.float32, torch.bfloat16)
    for layout, name in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels_last"))
]


def crop(dataset: Tensor, index: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Plain code of the augmentation, for drawn offsets and flips; NaN nowhere, since no index is outside."""
    _, channels, height, width = dataset.shape
    images = pad(dataset[index].float() / 255, [PADDING] * 4, value=FILL)
    device = dataset.device
    rows = torch.arange(height, device=device) + down[:, None]
    columns = torch.arange(width, device=device).expand(len(index), width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + right[:, None]
    batch, channel = torch.arange(len(index), device=device), torch.arange(channels, device=device)
    return images[batch[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


@pytest.mark.parametrize(("images", "shape", "dtype", "layout"), CASES)
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

    def by_reference(dataset: Tensor, index: Tensor, rng: Tensor) -> tuple[Tensor, Tensor]:
        channels_last = layout == torch.channels_last
        return reference.augment_start(dataset, index, rng, EPSILON, None, PADDING, True, FILL, dtype, channels_last)

    def plain(dataset: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        down, right = torch.randint(0, 2 * PADDING + 1, (2, batch), device=dataset.device)
        mirrored = torch.rand(batch, device=dataset.device) < 0.5
        clean = crop(dataset, index, down, right, mirrored).to(dtype).contiguous(memory_format=layout)
        return clean, clean + EPSILON * (2 * torch.rand_like(clean) - 1)

    clean, start = by_reference(dataset, index, rng)
    words = philox_words(rng, torch.arange(batch, device=device), STREAM_AUGMENTATION)
    offsets = ((word * (2 * PADDING + 1)) >> 32 for word in words[:2])
    rounding = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-7}
    torch.testing.assert_close(crop(dataset, index, *offsets, words[2] >> 31 == 1).to(dtype), clean, **rounding)

    def check(name: str, result: tuple[Tensor, Tensor]) -> None:
        if name.startswith("plain"):  # other draws
            assert result[0].shape == clean.shape
            assert result[0].stride() == clean.stride()
            assert ((result[1].float() - result[0].float()).abs() <= EPSILON + torch.finfo(dtype).eps).all()
        else:  # the tests hold ours to the bits; compiled kernels may fuse a multiplication with an addition
            torch.testing.assert_close(result[0], clean, **rounding)
            torch.testing.assert_close(result[1], start, **rounding)

    compiled_plain, reference_compiled = compiled(plain, clean), compiled_reference(by_reference)
    options = {"rng": rng, "epsilon": EPSILON, "dtype": dtype, "memory_format": layout}
    rivals = {
        "ours": lambda: rmcla_fast.augment_start(dataset, index, **options),
        "eager": lambda: by_reference(dataset, index, rng),
        "compile": lambda: reference_compiled(dataset, index, rng),
        "plain": lambda: plain(dataset, index),
        "plain, compiled": lambda: compiled_plain(dataset, index),
    }
    case = f"{' x '.join(map(str, (batch, *shape)))}, {str(dtype).removeprefix('torch.')}"
    case += ", channels last" if layout == torch.channels_last else ""
    moved = 2 * clean.nbytes + clean.numel()  # both results written, the bytes read
    compare(benchmark, "augment_start", case, rivals, check, like=clean, bytes_moved=moved)
