"""The exponential moving average of a model's weights, updated on the device in one fused pass."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rmcla_fast.any_model import writable


class ExponentialAverage(nn.Module):
    """A copy of a model, `average.module`, whose weights and buffers follow those of the model.

    Each update is average <- decay * average + (1 - decay) * model.

    Args:
        model: the model to follow; it is copied at once.
        decay: in [0, 1), per update.

    Raises:
        ValueError: a decay outside [0, 1), or a model that cannot be copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1); got {decay}")
        super().__init__()
        try:
            copied = copy.deepcopy(model)
        except Exception as error:  # the model's own code decides how it is copied
            raise ValueError(f"model cannot be copied for its average: {str(error).splitlines()[0]}") from error
        self.module = copied.requires_grad_(False).eval()
        self.decay = decay

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    @property
    def horizon(self) -> int:
        """Return after how many updates a weight counts for 1/e of what it counted for at first: 1 / (1 - decay)."""
        return round(1 / (1 - self.decay))

    def follows(self, model: nn.Module) -> bool:
        """Return whether the weights and buffers of the model have the shapes of those that are averaged."""
        return [one.shape for one in _tensors(self.module)] == [one.shape for one in _tensors(model)]

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Make the average equal to the model, in place. A run does so while it is shorter than the horizon.

        Otherwise the random weights that a run begins with would be a large part of the average for a long time.
        """
        for ours, theirs in zip(_tensors(self.module), _tensors(model), strict=True):
            if writable(ours):
                ours.copy_(theirs)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights. Counters and other integers are copied."""
        average, current, counters, counts = [], [], [], []
        for ours, theirs in zip(_tensors(self.module), _tensors(model), strict=True):
            if not writable(ours):
                continue
            if ours.is_floating_point():
                average.append(ours)
                current.append(theirs.detach())
            else:
                counters.append(ours)
                counts.append(theirs)
        torch._foreach_lerp_(average, current, 1 - self.decay)
        if counters:
            torch._foreach_copy_(counters, counts)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
