"""Access to a data set by the places of its images, and the form in which attacks take images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rmcla_fast.attacks.checked_model import ROWS, CheckedModel
from rmcla_fast.ops.tensors import clipped, with_own_strides

MANY_WEIGHTS, MANY_PIXELS = 1_000_000, 32 * 32  # see `_use_faster_layout`


class Batch(NamedTuple):
    """Some images of a data set, on the model's device."""

    rows: Tensor  # (B,) int64 on the CPU: their places in the data set
    images: Tensor  # (B, C, H, W) as `as_images` returns them
    labels: Tensor  # (B,) int64

    def seeds(self, seed: int) -> Tensor:
        """Return the seeds (B,) of the images on their device."""
        return seeds_of(self.rows, seed).to(self.labels.device)


def seeds_of(rows: Tensor, seed: int) -> Tensor:
    """Return a seed (B,) for each of these places in a data set, which are in the upper 32 bits.

    So a random start depends on the image alone, and not on the batch that it came in.
    """
    return seed + (rows << 32)


class Examples:
    """The images and labels of a data set, which are moved to the model's device when they are asked for.

    Args:
        model: the model that they are for.
        images: (N, C, H, W), float in [0, 1] or uint8.
        labels: (N,) int64.
    """

    def __init__(self, model: CheckedModel, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.device = model.device_for(images)
        self._layout = torch.contiguous_format
        self._layout = _use_faster_layout(model, self)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Batch:
        """Return the images at these places (B,)."""
        rows = rows.to(self.images.device)
        images = as_images(self.images[rows].to(self.device))
        if self._layout is torch.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Batch(rows.cpu(), images, self.labels[rows].to(self.device))

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Batch]:
        """Yield all images, or those of `rows`, in batches of `size`."""
        for part in (torch.arange(len(self)) if rows is None else rows).split(size):
            yield self.take(part)


def _use_faster_layout(model: CheckedModel, examples: Examples) -> torch.memory_format:
    """Return the memory layout for images on a CPU: channels_last, unless the model cannot take it.

    Convolutions then need no copies of images in another layout, and none of weights, which are stored in it as well
    until `untouched` restores them. A model that reads its images with `view` raises an error there.

    A large network on small images is slower in it, such as preact-resnet18 on 16 images of 16x16, and keeps its own.
    """
    _, channels, height, width = examples.images.shape
    weights = (one for one in model.parameters() if one.dim() == 4 and not one.is_inference())
    filters = [(parameter, parameter.data) for parameter in weights]
    large = sum(data.numel() for _, data in filters) > MANY_WEIGHTS and height * width < MANY_PIXELS
    if examples.device.type != "cpu" or channels == 1 or large or not len(examples):
        return torch.contiguous_format
    images = examples.take(torch.arange(min(ROWS, len(examples)))).images
    with torch.no_grad():
        expected = model(images)
        try:
            for parameter, data in filters:
                parameter.data = data.contiguous(memory_format=torch.channels_last)
            got = model(images.contiguous(memory_format=torch.channels_last))
            if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                return torch.channels_last
        except RuntimeError:
            pass
    for parameter, data in filters:
        parameter.data = data
    return torch.contiguous_format


def as_images(images: Tensor, *, widen: bool = True) -> Tensor:
    """Return floats in [0, 1]: uint8 means value / 255, and 16-bit floats become float32 if `widen`.

    Values outside by rounding are clipped (`check_pixels` refuses those further away).

    Attacks need float32 arithmetic, since a bfloat16 pixel near 1 is off by 6 % of an epsilon of 8/255. The result is
    never an inference-mode tensor, which autograd refuses. Its strides are those of `with_own_strides`. Otherwise
    images of one channel could have the strides of channels_last, convolutions would return that layout, and every step
    of an attack would mix two layouts.
    """
    images = clipped(images)
    if widen and images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    return with_own_strides(images.clone() if images.is_inference() else images.detach())
