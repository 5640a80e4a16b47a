"""Where the images of a training set are held: on the device if they fit there, else in the host's memory or on disk.

A batch is given as images on the device and rows in them, so that `augment` can crop from the images without a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rmcla_fast.data import ImageSet

SHARE_OF_MEMORY = 0.4  # of a GPU's free memory; a larger data set stays in the host's memory


class Source(NamedTuple):
    """Images (N, C, H, W) on the device, the rows (B,) that make a batch, and the labels (B,) of these rows."""

    images: Tensor
    rows: Tensor
    labels: Tensor


class HeldImages:
    """The images of one set, and their labels, which are always on the device."""

    def __init__(self, data: ImageSet, device: torch.device) -> None:
        self._device = device
        self._labels = data.labels.to(device)
        self._images = data.images.to(device) if _fits(data.images, device) else data.images

    def batch(self, index: Tensor, on_device: Tensor) -> Source:
        """Return the images at `index`, int64 (B,) on the host, which `on_device` holds on the device."""
        labels = self._labels[on_device]
        if self._images.device == self._device:
            return Source(self._images, on_device, labels)
        taken = self._images[index].pin_memory().to(self._device, non_blocking=True)
        return Source(taken, torch.arange(len(index), device=self._device), labels)


class MixedImages:
    """The images of a training set, followed by extra ones."""

    def __init__(self, data: ImageSet, extra: ImageSet, device: torch.device) -> None:
        self._count = len(data)
        self._own, self._extra = HeldImages(data, device), HeldImages(extra, device)

    def batch(self, index: Tensor, on_device: Tensor) -> Source:
        """Return the images at `index`, where a row from the size of the training set on is an extra image.

        A GPU would have to wait for the number of either kind. So both sets give a whole batch, in which their last or
        first image stands in the place of each image of the other set, and the rows choose between the two.
        """
        own = self._own.batch(*(rows.clamp(max=self._count - 1) for rows in (index, on_device)))
        extra = self._extra.batch(*((rows - self._count).clamp(min=0) for rows in (index, on_device)))
        is_extra = on_device >= self._count
        # `index_select` gives contiguous images, as `augment` takes them, also of images whose bytes are (N, H, W, C).
        both = torch.cat([part.images.index_select(0, part.rows) for part in (own, extra)])
        rows = torch.arange(len(index), device=on_device.device) + len(index) * is_extra
        return Source(both, rows, torch.where(is_extra, extra.labels, own.labels))


def _fits(images: Tensor, device: torch.device) -> bool:
    """Return whether the images fit on the device."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() < SHARE_OF_MEMORY * free
