"""Helpers of the reference operators that read logits and class labels."""

from __future__ import annotations

import torch
from torch import Tensor


def surprisal(z: Tensor) -> Tensor:
    """Return v_k = -log p_k for every row of logits (B, C).

    This is more accurate than `log_softmax`, which adds thousands of terms one after the other, while `sum` adds
    pairwise. It is also more accurate than `logsumexp(z) - z`, whose rounding error grows with z.
    """
    below = z.amax(1, keepdim=True) - z
    return below + (-below).exp().sum(1, keepdim=True).log()


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return (B, C) bool: which class is that of the row. Torch's own `one_hot` reads values, which vmap refuses."""
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def nan_unless(valid: Tensor, like: Tensor) -> Tensor:
    """Return (B, 1) factors: 1 for a valid row and NaN for another one, whose gradient is then NaN as well."""
    return torch.where(valid, 1.0, torch.nan).to(like.dtype)[:, None]


def in_range(name: str, labels: Tensor, num_classes: int) -> Tensor:
    """Return (B,) bool: which labels lie in [0, num_classes).

    Raises:
        ValueError: a label outside the range, on the CPU only, since the check would stall a GPU. A transform of
            torch.func has no values to check either.
    """
    valid = (labels >= 0) & (labels < num_classes)
    if labels.device.type == "cpu" and not torch._C._are_functorch_transforms_active() and not bool(valid.all()):
        row = int(valid.int().argmin())
        raise ValueError(f"{name} must lie in [0, {num_classes}); got {int(labels[row])} in row {row}")
    return valid
