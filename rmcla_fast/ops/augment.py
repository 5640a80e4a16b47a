"""`augment`: a batch of cropped and flipped images from a uint8 data set on the device, in one pass over bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.ops import checks, dispatch


def _fake(
    dataset: Tensor, index: Tensor, rng: Tensor, padding: int, flip: bool, fill: int, channels_last: bool
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (index.shape[0], *dataset.shape[1:])
    return torch.empty(shape, dtype=torch.uint8, device=dataset.device, memory_format=layout)


dispatch.define(
    "augment",
    "augment",
    "(Tensor dataset, Tensor index, Tensor rng, int padding, bool flip, int fill, bool channels_last) -> Tensor",
    _fake,
)


def augment(
    dataset: Tensor,
    index: Tensor,
    *,
    rng: Tensor,
    padding: int = 4,
    flip: bool = True,
    fill: int = 128,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str | None = None,
) -> Tensor:
    """Gather images of a uint8 data set, crop each with padding, and mirror half of them.

    This is the standard CIFAR augmentation (He et al., CVPR 2016, section 4.2). Image b draws from Philox block b of
    stream 1 for (seed, step): the shifts down and right are (word 0, word 1) times (2 padding + 1) div 2**32, and the
    top bit of word 2 mirrors it. Every backend gives the same bits.

    Args:
        dataset: (N, C, H, W) uint8, contiguous, on the device.
        index: (B,) int64, the images to gather; on the data set's device.
        rng: int64 tensor (seed, step) on the data set's device, read by the kernel and never advanced.
        padding: how many pixels a crop may reach over each border; 0 crops nothing.
        flip: whether half of the images are mirrored left to right.
        fill: the byte of pixels beyond the border, in [0, 255].
        memory_format: the result's, torch.contiguous_format or torch.channels_last.
        backend: None (choose), "reference", "cpu", "triton" or "cuda".

    Returns:
        (B, C, H, W) uint8. An index outside [0, N) is a ValueError on a CPU. On a GPU, where the check would stall, it
        gives an image of `fill`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
    """
    if not isinstance(dataset, Tensor) or dataset.dtype != torch.uint8:
        got = dataset.dtype if isinstance(dataset, Tensor) else type(dataset).__name__
        raise TypeError(f"dataset must be a uint8 tensor; got {got}")
    if dataset.dim() != 4 or not dataset.is_contiguous():
        raise ValueError(f"dataset must be contiguous (N, C, H, W); got {tuple(dataset.shape)}, {dataset.stride()}")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 tensor of shape (B,); got {got}")
    if index.dim() != 1:
        raise ValueError(f"index must have shape (B,); got {tuple(index.shape)}")
    checks.same_device("index", index, dataset, "dataset")
    checks.random_state(rng, dataset, "dataset")
    for name, value, end in (("padding", padding, 2**30), ("fill", fill, 256)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int; got {type(value).__name__}")
        if not 0 <= value < end:
            raise ValueError(f"{name} must lie in [0, {end}); got {value}")
    checks.boolean("flip", flip)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last; got {memory_format}")
    operator = dispatch.choose("augment", dataset, backend)
    images: Tensor = operator(dataset, index, rng, padding, flip, fill, memory_format == torch.channels_last)
    return images
