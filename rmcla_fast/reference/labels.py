"""What is common to the references that read logits and class labels."""

from __future__ import annotations

from torch import Tensor


def surprisal(z: Tensor) -> Tensor:
    """v_k = -log p_k of every row (B, C).

    `log_softmax` adds thousands of terms one after the other, and `logsumexp(z) - z` rounds at the magnitude of z and
    not of the difference; `sum` adds pairwise.
    """
    below = z.amax(1, keepdim=True) - z
    return below + (-below).exp().sum(1, keepdim=True).log()


def label_error(name: str, label: int, row: int, num_classes: int) -> str:
    return f"{name} must lie in [0, {num_classes}); got {label} in row {row}"


def in_range(name: str, labels: Tensor, num_classes: int) -> Tensor:
    """(B,) bool: which labels are classes. On the CPU a ValueError names the first that is not; a GPU would stall."""
    valid = (labels >= 0) & (labels < num_classes)
    if labels.device.type == "cpu" and not bool(valid.all()):
        row = int(valid.int().argmin())
        raise ValueError(label_error(name, int(labels[row]), row, num_classes))
    return valid
