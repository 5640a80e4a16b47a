"""Random crop with padding and horizontal flip, for a whole batch at once, drawn from (seed, step) and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.reference.random_start import STREAM_AUGMENTATION, philox_uniform


def crop_and_flip(images: Tensor, rng: Tensor, *, padding: int = 4, flip: bool = True, fill: float = 0.5) -> Tensor:
    """Each image shifted by up to `padding` pixels either way and flipped every other time.

    Args:
        images: (B, C, H, W) uint8.
        rng: int64 of two, (seed, step), on the images' device. Image i takes the words 4i to 4i+2 of the augmentation's
            Philox stream: shift down, shift across, flip.
        padding: pixels on every side.
        fill: what the padding holds, in [0, 1].

    Returns:
        (B, C, H, W) float32 in [0, 1].
    """
    count, channels, height, width = images.shape
    words = philox_uniform(rng, 4 * count, STREAM_AUGMENTATION).view(count, 4)
    shift = (words[:, :2] * (2 * padding + 1)).long()
    padded = torch.nn.functional.pad(images.float() / 255, [padding] * 4, value=fill)
    rows = shift[:, 0, None] + torch.arange(height, device=images.device)
    columns = shift[:, 1, None] + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(words[:, 2, None] < 0.5, columns.flip(1), columns)
    index = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(count, 1, height * width)
    flat = padded.view(count, channels, -1).gather(2, index.expand(-1, channels, -1))
    return flat.view(count, channels, height, width)
