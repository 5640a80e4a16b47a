"""`soft_cross_entropy` in plain torch (Wang and Zhang 2019, the method's step 5)."""

from __future__ import annotations

from torch import Tensor

from rmcla_fast.ops.tensors import compute_dtype, finite_rows
from rmcla_fast.reference.labels import in_range, nan_unless, one_hot, surprisal


def soft_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    reduction: str = "mean",
    label_gradient: bool = False,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the loss -sum_k y'_k log p_k of the smoothed labels y' = (1 - s) y + s / C, and the gradients of each row.

    The gradients are sum(y') p - y' in the logits and -(1 - s) log p in the labels (None unless `label_gradient`), and
    are not reduced.
    """
    z = logits.to(compute_dtype(logits))
    valid = finite_rows(z)
    if labels.dim() == 1:
        valid &= in_range("labels", labels, z.shape[1])
        y = one_hot(labels.clamp(0, z.shape[1] - 1), z.shape[1]).to(z.dtype)
    else:
        y = labels.to(z.dtype)
    keep = 1 - label_smoothing
    y = keep * y + label_smoothing / z.shape[1]
    v = surprisal(z * nan_unless(valid, z))
    rows = (y * v).sum(1)
    gradient = y.sum(1, keepdim=True) * (-v).exp() - y
    loss = rows if reduction == "none" else rows.mean() if reduction == "mean" else rows.sum()
    return loss, gradient.to(logits.dtype).contiguous(), (keep * v).contiguous() if label_gradient else None
