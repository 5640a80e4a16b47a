"""Normalisation as a layer: attacks work on images in [0, 1], and the statistics are saved with the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """The layer (images - mean) / std for (B, C, H, W) images.

    `mean` and `std` are buffers of shape (1, C, 1, 1), which training does not change.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            numbers = [0.5] * channels if values is None else [float(value) for value in values]
            if len(numbers) != channels:
                raise ValueError(f"{name} must have {channels} numbers, one per channel; got {len(numbers)}")
            if not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
                raise ValueError(f"{name} must be finite{' and positive' if name == 'std' else ''}; got {numbers}")
            self.register_buffer(name, torch.tensor(numbers).reshape(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.mean.shape[1]:  # images of one channel would broadcast without an error
            raise ValueError(f"images must have {self.mean.shape[1]} channels; got {images.shape[1]}")
        return (images - self.mean) / self.std
