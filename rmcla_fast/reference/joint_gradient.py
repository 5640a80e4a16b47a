"""`joint_gradient` and `redistribute_labels` in plain torch (Wang and Zhang 2019, supplementary equations 2 to 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.ops.tensors import compute_dtype, finite_rows
from rmcla_fast.reference.labels import in_range, nan_unless, one_hot, surprisal

INFINITY = float("inf")
NAN = float("nan")


def joint_gradient(
    logits: Tensor,
    labels: Tensor,
    target: str = "mc",
    target_labels: Tensor | None = None,
    beta: float = 9.0,
    gamma: float = 0.01,
    top_k: int | None = None,
    label_scheme: str = "main",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the objective (B,), its gradient (B, C), soft labels (B, C) or None, and targets (B,)."""
    z = logits.to(compute_dtype(logits))
    num_classes = z.shape[1]
    valid = finite_rows(z) & in_range("labels", labels, num_classes)
    true = labels.clamp(0, num_classes - 1)
    is_true = one_hot(true, num_classes)

    if target == "untargeted":
        targets = true
    elif target == "given":
        assert target_labels is not None
        valid &= in_range("target", target_labels, num_classes)
        targets = target_labels.clamp(0, num_classes - 1)
    elif target == "ll":
        targets = z.masked_fill(is_true, INFINITY).argmin(1)
    else:  # "mc" and "margin"
        targets = z.masked_fill(is_true, -INFINITY).argmax(1)

    z = z * nan_unless(valid, z)
    is_target = one_hot(targets, num_classes).to(z.dtype)
    if target == "margin":
        objective = (z.gather(1, targets[:, None]) - z.gather(1, true[:, None])).squeeze(1)
        gradient = is_target - is_true.to(z.dtype)
    else:
        log_p = -surprisal(z)
        objective = log_p.gather(1, targets[:, None]).squeeze(1)  # -CE(z, target)
        gradient = is_target - log_p.exp()
        if target == "untargeted":
            objective, gradient = -objective, -gradient

    soft_labels = None
    if label_scheme != "none":
        soft_labels = _soft_labels(z, is_true, beta, gamma, top_k, label_scheme)
        soft_labels = soft_labels.masked_fill(~valid[:, None], NAN)
    return (
        objective,
        gradient.masked_fill(~valid[:, None], NAN).to(logits.dtype),
        soft_labels,
        targets.masked_fill(~valid, -1),
    )


def redistribute_labels(
    logits: Tensor,
    labels: Tensor,
    beta: float = 9.0,
    gamma: float = 0.01,
    top_k: int | None = None,
    label_scheme: str = "main",
) -> Tensor:
    """Return only the soft labels (B, C) of `joint_gradient`."""
    z = logits.to(compute_dtype(logits))
    num_classes = z.shape[1]
    valid = finite_rows(z) & in_range("labels", labels, num_classes)
    is_true = one_hot(labels.clamp(0, num_classes - 1), num_classes)
    return _soft_labels(z, is_true, beta, gamma, top_k, label_scheme).masked_fill(~valid[:, None], NAN)


def redistribute_labels_out(
    logits: Tensor, labels: Tensor, beta: float, gamma: float, top_k: int | None, label_scheme: str, out: Tensor
) -> None:
    """Write the result of `redistribute_labels` into `out`."""
    out.copy_(redistribute_labels(logits, labels, beta, gamma, top_k, label_scheme))


def _soft_labels(z: Tensor, is_true: Tensor, beta: float, gamma: float, top_k: int | None, label_scheme: str) -> Tensor:
    """Return soft labels (B, C): every other class gets its share, and the true one beta times the largest share."""
    others = z.shape[1] - 1
    if label_scheme == "main":  # s_k = v_k - v_MC + gamma; with v = -log p the log-sum-exp cancels
        share = z.masked_fill(is_true, -INFINITY).amax(1, keepdim=True) - z + gamma
    elif others == 1:  # "sup" with two classes: a share of 1 gives the same labels, and is never 0 / 0
        share = torch.ones_like(z)
    else:  # "sup": s_k = v_k = -log p_k
        share = surprisal(z)
    if top_k is not None and top_k < others:  # the largest v are the smallest logits; ties to the lower index
        receivers = smallest(z.masked_fill(is_true, INFINITY), top_k)
        share = torch.zeros_like(share).scatter(1, receivers, share.gather(1, receivers))
    share = share.masked_fill(is_true, 0)
    kept = beta * share.amax(1, keepdim=True)
    total = share.sum(1, keepdim=True) + kept
    return torch.where(is_true, kept, share) / total


def smallest(z: Tensor, count: int) -> Tensor:
    """Return the indices (B, count) of the smallest values of each row.

    Ties go to the lower index, which `torch.topk` does not promise.
    """
    return z.argsort(dim=1, stable=True)[:, :count]
