"""CutMix: a rectangle of another image is pasted into each image of a batch, and the labels are mixed by area.

Yun et al., ICCV 2019. Rebuffi et al. ("Fixing data augmentation to improve adversarial robustness", 2021) found that it
helps adversarial training together with an average of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rmcla_fast.training.loader import Batches


class CutMix:
    """The batches of another loader, mixed: images (B, C, H, W) and soft labels (B, num_classes) float32.

    Each image gets a rectangle of the next one in the batch. The rectangle is the same for a whole batch. Its share of
    the area is uniform in [0, 1], and so is its center in the image, whose edges cut it off. It is a function of (seed,
    epoch, step), so that nothing has to be saved.
    """

    def __init__(self, batches: Batches, num_classes: int, seed: int) -> None:
        self.steps = batches.steps
        self._batches, self._num_classes, self._seed = batches, num_classes, seed

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the updates `first`, `first` + 1, ... of an epoch."""
        for step, (images, labels) in enumerate(self._batches.epoch(epoch, first), start=first):
            yield self._mixed(images, labels, rectangle(images.shape[-2], images.shape[-1], (self._seed, epoch, step)))

    def _mixed(self, images: Tensor, labels: Tensor, where: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        mixed = images.clone(memory_format=torch.preserve_format)
        mixed[..., where[0], where[1]] = images[..., where[0], where[1]].roll(1, 0)
        inside = mixed[0, 0, where[0], where[1]].numel() / mixed[0, 0].numel()
        classes = torch.arange(self._num_classes, device=labels.device)
        one_hot = (labels[:, None] == classes).float()
        return mixed, torch.lerp(one_hot, one_hot.roll(1, 0), inside)


def rectangle(height: int, width: int, seeds: tuple[int, int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the rectangle."""
    rng = np.random.default_rng(seeds)
    side = float(np.sqrt(rng.uniform()))
    slices = []
    for length in (height, width):
        center, half = int(rng.integers(length)), round(side * length / 2)
        slices.append(slice(max(0, center - half), min(length, center + half)))
    return slices[0], slices[1]
