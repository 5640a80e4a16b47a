"""The classes that a targeted attack moves an image towards, one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel

TARGETS = 9


class TargetClasses:
    """For each image the classes with the largest logits on the image itself, up to 9, without the true one.

    Attributes:
        count: how many classes each image has.
    """

    def __init__(self, model: CheckedModel, examples: Examples, rows: Tensor, size: int) -> None:
        """Ask the model about the images at these places (N,), in batches of up to `size`."""
        chosen = []
        for batch in examples.batches(size, rows):
            with torch.no_grad():
                logits = model(batch.images)
            others = logits.scatter(1, batch.labels[:, None], float("-inf"))
            chosen.append(others.topk(min(TARGETS, logits.shape[1] - 1)).indices)
        self._classes = torch.cat(chosen)
        self._places = torch.full((int(rows.max()) + 1,), -1)
        self._places[rows] = torch.arange(len(rows))
        self.count = self._classes.shape[1]

    def take(self, rows: Tensor, number: Tensor) -> Tensor:
        """Return class number `number` (k,) of the images at `rows` (k,), counted from 0; both are on the CPU."""
        device = self._classes.device
        return self._classes[self._places[rows].to(device), number.to(device)]
