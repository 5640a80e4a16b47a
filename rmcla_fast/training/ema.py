"""The exponential moving average of a model's weights, updated on the device in one fused pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rmcla_fast.any_model import check_model, own_inputs, set_mode, weight_dtype, writable
from rmcla_fast.cuda_graph import first_line


class ExponentialAverage(nn.Module):
    """A copy of a model, `average.module`, whose weights and buffers follow those of the model.

    Each update is average <- decay * average + (1 - decay) * model.

    Args:
        model: the model to follow; it is copied at once.
        decay: in [0, 1), per update.

    Raises:
        TypeError, ValueError: a decay outside [0, 1), a model that cannot be copied, or one with 16-bit weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1); got {decay}")
        super().__init__()
        check_model(model, trained=True)
        if weight_dtype(model) in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"model must have float32 weights for an average; {weight_dtype(model)} would lose its small steps "
                "(a precision of 16 bits keeps float32 weights)"
            )
        try:
            copied = copy.deepcopy(model)
            for parameter in copied.parameters():
                parameter.requires_grad_(False)
        except Exception as error:  # the model's own code decides how it is copied
            raise ValueError(f"model cannot be copied for its average: {first_line(error)}") from error
        set_mode(copied, training=False)
        self.module = copied
        self.decay = decay

    def forward(self, images: Tensor) -> Tensor:
        return self.module(own_inputs(images, None))

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
        for ours, theirs in self._pairs(model):
            if writable(ours):
                ours.copy_(theirs)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights. Counters and other integers are copied."""
        average, current, counters, counts = [], [], [], []
        for ours, theirs in self._pairs(model):
            if not writable(ours):
                continue
            if ours.is_floating_point() or ours.is_complex():
                average.append(ours)
                current.append(theirs.detach())
            else:
                counters.append(ours)
                counts.append(theirs)
        torch._foreach_lerp_(average, current, 1 - self.decay)
        if counters:
            torch._foreach_copy_(counters, counts)

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the tensors of the average beside those of the model."""
        ours, theirs = _tensors(self.module), _tensors(model)
        if len(ours) != len(theirs):  # the first forward pass has made buffers, which were None or not there
            for module, other in zip(self.module.modules(), model.modules(), strict=True):
                made = {name: buffer for name, buffer in other._buffers.items() if buffer is not None}
                for name in made.keys() - {name for name, own in module._buffers.items() if own is not None}:
                    module._buffers[name] = made[name].detach().clone()
            ours = _tensors(self.module)
        return zip(ours, theirs, strict=True)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
