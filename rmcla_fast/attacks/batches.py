"""The batches in which a data set is attacked, and the form in which attacks take images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rmcla_fast.attacks.checked_model import CheckedModel
from rmcla_fast.ops.tensors import to_unit, with_own_strides


class Batch(NamedTuple):
    """Some images and labels of a data set, on the model's device."""

    number: int  # 0 for the first batch
    rows: slice  # where the batch lies in the data set
    images: Tensor  # (B, C, H, W) as `as_images` returns them
    labels: Tensor  # (B,) int64

    def seed(self, seed: int) -> int:
        """Return the batch's own seed for random starts, with the number of the batch in the upper 32 bits."""
        return seed + (self.number << 32)


def batches(model: CheckedModel, images: Tensor, labels: Tensor, batch_size: int) -> Iterator[Batch]:
    """Yield the data set in batches, each moved to the model's device when its turn comes."""
    device = model.device_for(images)
    for number, first in enumerate(range(0, len(labels), batch_size)):
        rows = slice(first, min(first + batch_size, len(labels)))
        yield Batch(number, rows, as_images(images[rows].to(device)), labels[rows].to(device))


def as_images(images: Tensor, *, widen: bool = True) -> Tensor:
    """Return floats in [0, 1]: uint8 means value / 255, and 16-bit floats become float32 if `widen`.

    Attacks need float32 arithmetic, since a bfloat16 pixel near 1 is off by 6 % of an epsilon of 8/255. The result is
    never an inference-mode tensor, which autograd refuses. Its strides are those of `with_own_strides`. Otherwise
    images of one channel could have the strides of channels_last, convolutions would return that layout, and every step
    of an attack would mix two layouts.
    """
    images = to_unit(images)
    if widen and images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    images = images.clone() if images.is_inference() else images.detach()
    return with_own_strides(images)
