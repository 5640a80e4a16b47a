"""Batches of a data set that is held as uint8, on the device where it fits; their order depends on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rmcla_fast.data import ImageSet
from rmcla_fast.data.augment import crop_and_flip
from rmcla_fast.errors import UserError

SHARE_OF_MEMORY = 0.4  # of a GPU's free memory that the images may take; more stays in the host's


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) int64: the images' order in an epoch, a function of (seed, epoch), so that nothing need be saved of it."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


def steps_in_epoch(count: int, batch_size: int) -> int:
    """Updates in an epoch. The last, smaller batch counts, but not if it is a single image: batch norm has no use for one.

    Raises:
        UserError: fewer images than a batch.
    """
    if count < batch_size:
        raise UserError(
            f"the data set has {count} training images, fewer than a batch; give --batch-size {count} or less"
        )
    return count // batch_size + (count % batch_size > 1)


class Batches:
    """Batches of one training set.

    Args:
        data: the training set.
        batch_size: images an update.
        seed: of the order, the crops and the flips.
        device: where the batches are wanted.
        augment: crop with padding 4 and flip.
    """

    def __init__(self, data: ImageSet, batch_size: int, seed: int, device: torch.device, augment: bool) -> None:
        self.steps = steps_in_epoch(len(data), batch_size)
        self._batch_size, self._seed, self._device, self._augment = batch_size, seed, device, augment
        self._labels = data.labels.to(device)
        self._images = data.images.to(device) if _fits(data.images, device) else data.images
        self._rng = torch.tensor([seed, 0], device=device)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (uint8, or float32 in [0, 1] where augmented) and labels of the updates `first`, ... of an epoch."""
        order = epoch_order(len(self._labels), self._seed, epoch)
        on_device = order.to(self._device)
        for step in range(first, self.steps):
            part = slice(step * self._batch_size, (step + 1) * self._batch_size)
            images = self._gather(order[part], on_device[part])
            if self._augment:
                self._rng[1].fill_(epoch * self.steps + step)
                images = crop_and_flip(images, self._rng)
            yield images, self._labels[on_device[part]]

    def _gather(self, index: Tensor, on_device: Tensor) -> Tensor:
        if self._images.device == self._device:
            return self._images[on_device]
        return self._images[index].pin_memory().to(self._device, non_blocking=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() < SHARE_OF_MEMORY * free
