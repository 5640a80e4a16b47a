"""The optimizer (SGD with weight decay on weights only) and its learning rate over the updates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmcla_fast.models import weight_groups

SCHEDULES = ("piecewise", "one-cycle", "one-cycle-cosine")
MILESTONES = (0.5, 0.75)  # the paper divides by 10 after epochs 100 and 150 of 200
WARM_UP = 0.3  # the rising fraction of "one-cycle"
ONE_CYCLE_START, ONE_CYCLE_END = 0.04, 0.001  # fractions of the peak
COSINE_END = 1e-4  # the last rate of "one-cycle-cosine" as a fraction of its first


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step alone, so that a resumed run needs only the step.

    "piecewise" is `peak`, a tenth of it from half of the steps on, and a hundredth from three quarters on. "one-cycle"
    rises linearly to `peak` over the first 30 % of the steps, and then falls linearly to a thousandth of it.
    "one-cycle-cosine" does so along half a cosine each, and falls to nearly nothing, as torch's OneCycleLR does.
    """

    name: str
    peak: float
    total_steps: int

    def rate(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        done = step / self.total_steps
        if self.name == "piecewise":
            return self.peak * 0.1 ** sum(done >= milestone for milestone in MILESTONES)
        if self.name == "one-cycle-cosine":
            rising, part = done < WARM_UP, done / WARM_UP if done < WARM_UP else (done - WARM_UP) / (1 - WARM_UP)
            low = ONE_CYCLE_START if rising else ONE_CYCLE_START * COSINE_END
            share = (1 - math.cos(math.pi * part)) / 2
            return self.peak * (low + (1 - low) * (share if rising else 1 - share))
        if done < WARM_UP:
            return self.peak * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * done / WARM_UP)
        return self.peak * (1 - (1 - ONE_CYCLE_END) * (done - WARM_UP) / (1 - WARM_UP))


def warmed_up(epsilon: float, step: int, warm_up_steps: int) -> float:
    """Return the epsilon of update `step`, which grows linearly from 0 over `warm_up_steps`."""
    return epsilon if step >= warm_up_steps else epsilon * (step + 1) / (warm_up_steps + 1)


def build_optimizer(model: nn.Module, rate: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return fused SGD whose learning rate is a tensor on the model's device, which a captured graph reads."""
    device = next(model.parameters()).device
    return torch.optim.SGD(
        weight_groups(model, weight_decay),
        lr=torch.tensor(rate, dtype=torch.float32, device=device),
        momentum=momentum,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place if it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
