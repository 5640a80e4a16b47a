"""`soft_cross_entropy`: cross entropy with soft labels, whose forward pass computes the gradients too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmcla_fast.ops import checks, dispatch
from rmcla_fast.ops.tensors import compute_dtype

REDUCTIONS = ("mean", "sum", "none")


def _fake(
    logits: Tensor, labels: Tensor, reduction: str, label_gradient: bool, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    wide = compute_dtype(logits)
    return (
        logits.new_empty(logits.shape[:1] if reduction == "none" else (), dtype=wide),
        logits.new_empty(logits.shape),
        logits.new_empty(logits.shape, dtype=wide) if label_gradient else None,
    )


dispatch.define(
    "soft_cross_entropy",
    "soft_cross_entropy",
    "(Tensor logits, Tensor labels, str reduction, bool label_gradient, float label_smoothing)"
    " -> (Tensor, Tensor, Tensor?)",
    _fake,
)


class _SoftCrossEntropy(torch.autograd.Function):
    """The autograd function of `soft_cross_entropy`.

    The forward pass computes both gradients too, row by row and not reduced; the backward pass scales them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        operator: Any,
        logits: Tensor,
        labels: Tensor,
        reduction: str,
        label_gradient: bool,
        label_smoothing: float,
    ) -> Tensor:
        loss: Tensor
        loss, grad_logits, grad_labels = operator(logits, labels, reduction, label_gradient, label_smoothing)
        ctx.save_for_backward(grad_logits, grad_labels)
        ctx.reduction = reduction
        ctx.label_dtype = labels.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("soft_cross_entropy has no second derivative; call it without create_graph=True")
        grad_logits, grad_labels = ctx.saved_tensors
        if ctx.reduction == "mean":
            grad = grad / grad_logits.shape[0]
        if grad_labels is None and grad.dtype == grad_logits.dtype and not grad.dim():  # the usual case, done fastest
            return None, grad_logits * grad, None, None, None, None
        # A column and not a scalar: CUDA would round a scalar to float16, where a loss scale of 65,536 is infinite.
        grad = grad.reshape(-1, 1)
        for_labels = (grad_labels * grad).to(ctx.label_dtype) if grad_labels is not None else None
        return None, (grad_logits * grad).to(grad_logits.dtype), for_labels, None, None, None


def soft_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Return -sum_k y'_k log softmax(z)_k, where y' = (1 - s) y + s / C are the labels smoothed by s.

    Without smoothing this is step 5 of "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019). Label smoothing is
    from section 7 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., CVPR 2016). Class
    indices are one-hot labels y. Labels need not sum to one. The gradient in the logits is sum(y') softmax(z) - y', and
    the gradient in the labels is (1 - s) times -log softmax(z), the first paper's v. The forward pass computes both.

    Args:
        logits: (B, C) float32, float64, float16 or bfloat16, any stride, C >= 2. Arithmetic is float32 (float64 for
            float64).
        labels: (B, C) float in any of these dtypes, or (B,) int64 class indices.
        reduction: "mean" over the rows, "sum", or "none".
        label_smoothing: s, at least 0 (the labels as they are) and less than 1. The formula is that of torch's
            `cross_entropy`.
        backend: "reference", "cpu", "triton" or "cuda"; None chooses.

    Returns:
        The loss, float32 (float64 for float64 logits): a scalar, or (B,) for reduction "none". It is differentiable
        once, in the logits and in float labels; a second derivative raises RuntimeError. A row of logits with NaN or
        infinity gives NaN in its loss and gradients. A logit of magnitude 2**64 or more (2**960 for float64) counts as
        infinite. On a GPU, a row whose class index is outside [0, C) gives NaN, too. Inside a transform of torch.func
        (`grad`, `vmap`, ...) plain torch runs: it is differentiable twice, and such a row gives NaN on a CPU, too.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range; on a CPU also a class index
            outside [0, C).
    """
    checks.logits(logits)
    if labels is None:
        raise TypeError(
            "labels must be float (B, C) or int64 (B,); got None (a recipe that keeps one-hot labels gives soft_labels "
            "None: pass the labels themselves)"
        )
    if isinstance(labels, Tensor) and labels.dtype != torch.int64:
        if labels.dtype not in checks.FLOATS:
            raise TypeError(f"labels must be float (B, C) or int64 (B,); got {labels.dtype}")
        checks.dense("labels", labels)
        checks.same_shape("labels", labels, logits, "logits")
        checks.same_device("labels", labels, logits, "logits")
    else:
        checks.class_indices("labels", labels, logits)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
    label_smoothing = checks.fraction("label_smoothing", label_smoothing)
    loss: Tensor
    if dispatch.inside_transform():
        loss, *_ = dispatch.reference("soft_cross_entropy")(logits, labels, reduction, False, label_smoothing)
        return loss
    operator = dispatch.choose("soft_cross_entropy", logits, backend)
    loss = _SoftCrossEntropy.apply(operator, logits, labels, reduction, labels.requires_grad, label_smoothing)
    return loss
