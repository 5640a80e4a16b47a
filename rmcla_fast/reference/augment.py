"""Reference of `augment` in plain torch: gather, crop with padding, and flip."""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.ops.philox import STREAM_AUGMENTATION, philox_words
from rmcla_fast.reference.labels import in_range


def augment(
    dataset: Tensor,
    index: Tensor,
    rng: Tensor,
    padding: int = 4,
    flip: bool = True,
    fill: int = 128,
    channels_last: bool = False,
) -> Tensor:
    """Return cropped and flipped images (B, C, H, W) uint8; image b draws its crop and flip from Philox block b."""
    _, channels, height, width = dataset.shape
    valid = in_range("index", index, dataset.shape[0])
    words = philox_words(rng, torch.arange(len(index), device=index.device), STREAM_AUGMENTATION)
    down, right = ((word * (2 * padding + 1)) >> 32 for word in words[:2])  # uniform in [0, 2 padding]
    mirrored = (words[2] >> 31).bool() & flip

    rows = torch.arange(height, device=index.device) + down[:, None] - padding  # (B, H): where output rows come from
    columns = torch.arange(width, device=index.device).expand(len(index), width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + right[:, None] - padding
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    pixels = dataset[
        index.clamp(0, max(dataset.shape[0] - 1, 0))[:, None, None, None],
        torch.arange(channels, device=index.device)[:, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    images = pixels.masked_fill(~(inside & valid[:, None, None])[:, None], fill)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # Not `contiguous`: with one channel both layouts are the same memory, and it would keep the strides of the other.
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device, memory_format=layout).copy_(images)
