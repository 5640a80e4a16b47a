"""`joint_gradient`, `joint_objective` and `redistribute_labels`: what logits say about image and label."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmcla_fast.ops import checks, dispatch
from rmcla_fast.ops.tensors import compute_dtype

TARGETS = ("mc", "ll", "untargeted", "margin")
LABEL_SCHEMES = ("main", "sup", "none")


class JointGradient(NamedTuple):
    """The result of `joint_gradient`; no tensor of it requires grad."""

    objective: Tensor  # (B,) float32, or float64 for float64 logits
    grad_logits: Tensor  # (B, C) in the logits' dtype
    soft_labels: Tensor | None  # (B, C) in the objective's dtype; None for label_scheme "none"
    targets: Tensor  # (B,) int64


class JointObjective(NamedTuple):
    """The result of `joint_objective`; `objective` alone is differentiable, in the logits."""

    objective: Tensor  # (B,)
    soft_labels: Tensor | None  # (B, C)
    targets: Tensor  # (B,) int64


def _fake_joint_gradient(
    logits: Tensor,
    labels: Tensor,
    target: str,
    target_labels: Tensor | None,
    beta: float,
    gamma: float,
    top_k: int | None,
    label_scheme: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    wide = compute_dtype(logits)
    return (
        logits.new_empty(logits.shape[0], dtype=wide),
        logits.new_empty(logits.shape),
        None if label_scheme == "none" else logits.new_empty(logits.shape, dtype=wide),
        torch.empty_like(labels, memory_format=torch.contiguous_format),
    )


def _fake_redistribute_labels(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape, dtype=compute_dtype(logits))


_RULE = "float beta, float gamma, int? top_k, str label_scheme"
dispatch.define(
    "joint_gradient",
    "joint_gradient",
    f"(Tensor logits, Tensor labels, str target, Tensor? target_labels, {_RULE}) -> (Tensor, Tensor, Tensor?, Tensor)",
    _fake_joint_gradient,
)
dispatch.define(
    "joint_gradient",
    "redistribute_labels",
    f"(Tensor logits, Tensor labels, {_RULE}) -> Tensor",
    _fake_redistribute_labels,
)
dispatch.define(
    "joint_gradient",
    "redistribute_labels.out",
    f"(Tensor logits, Tensor labels, {_RULE}, *, Tensor(a!) out) -> ()",
    lambda *_, **__: None,
)


class _JointObjective(torch.autograd.Function):
    """d objective / d logits left the forward's kernel already; the backward scales its rows."""

    @staticmethod
    def forward(ctx: Any, operator: Any, logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        objective, grad_logits, soft_labels, targets = operator(logits, *arguments)
        ctx.save_for_backward(grad_logits)
        ctx.argument_count = len(arguments)
        ctx.mark_non_differentiable(targets, *() if soft_labels is None else (soft_labels,))
        ctx.set_materialize_grads(False)
        return objective, soft_labels, targets

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("joint_objective has no second derivative; call it without create_graph=True")
        (grad_logits,) = ctx.saved_tensors
        result = None if grad is None else (grad_logits * grad[:, None]).to(grad_logits.dtype)
        return None, result, *[None] * ctx.argument_count


def _arguments(
    logits: Tensor,
    labels: Tensor,
    target: str | Tensor,
    beta: float,
    gamma: float,
    top_k: int | None,
    label_scheme: str,
) -> tuple[Tensor, str, Tensor | None, float, float, int | None, str]:
    """The checked arguments of the registered operator after `logits`."""
    checks.logits(logits)
    checks.class_indices("labels", labels, logits)
    target_labels = None
    if isinstance(target, Tensor):
        checks.class_indices("target", target, logits)
        target_labels, target = target, "given"
    elif not isinstance(target, str) or target not in TARGETS:  # an array compares element by element
        raise ValueError(f"target must be one of {', '.join(map(repr, TARGETS))} or an int64 tensor; got {target!r}")
    return labels, target, target_labels, *_rule(beta, gamma, top_k, label_scheme, LABEL_SCHEMES)


def _rule(
    beta: float, gamma: float, top_k: int | None, label_scheme: str, schemes: tuple[str, ...]
) -> tuple[float, float, int | None, str]:
    if label_scheme not in schemes:
        raise ValueError(f"label_scheme must be one of {', '.join(map(repr, schemes))}; got {label_scheme!r}")
    if top_k is not None:
        checks.top_k(top_k)
    # Beyond these bounds no label changes but by rounding, and float32 would make infinity or 0 of them: NaN rows.
    beta, gamma = min(checks.positive("beta", beta), 1e15), checks.positive("gamma", gamma)
    return beta, min(max(gamma, 2.0**-100), 1e20), top_k, label_scheme


def joint_gradient(
    logits: Tensor,
    labels: Tensor,
    *,
    target: str | Tensor = "mc",
    beta: float = 9.0,
    gamma: float = 0.01,
    top_k: int | None = None,
    label_scheme: str = "main",
    backend: str | None = None,
) -> JointGradient:
    """The attack's objective, its gradient in the logits, and adversarial labels, in one pass over each row.

    From "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), section 3 and equations 2 to 6 of its supplement.
    With z a row of logits, c its label, k over the other classes, p = softmax(z), v_k = -log p_k::

        objective    "mc", "ll" or given   -CE(z, t) = log p_t; t is the k with the largest or smallest z_k, or given
                     "untargeted"          +CE(z, c)
                     "margin"              max_k z_k - z_c
        soft_labels  "main"                y_k = s_k / D, y_c = beta max_k s_k / D, s_k = v_k - min_k v_k + gamma
                     "sup"                 the same with s_k = v_k;  D = sum_k s_k + beta max_k s_k

    so that a step along +grad raises the objective, and the label keeps `y_c >= beta max_k y_k`.

    Args:
        logits: (B, C) float32, float64, float16 or bfloat16, any stride, C >= 2. Arithmetic is float32 (float64 for
            float64).
        labels: (B,) int64, the true classes.
        target: "mc" (most confusing), "ll" (least likely), "untargeted", "margin", or an int64 tensor (B,).
        beta: how many times the largest other share the true class keeps; positive.
        gamma: added to every share of "main"; positive.
        top_k: only the k other classes with the largest v receive mass, the others exactly 0; None or >= C - 1 is all.
        label_scheme: "main", "sup", or "none" (soft_labels is None).
        backend: None (choose), "reference", "cpu", "triton" or "cuda".

    Returns:
        JointGradient: objective (B,), grad_logits (B, C) *not* divided by B, soft_labels (B, C), targets (B,) (the
        labels when untargeted, the most confusing class for the margin). Ties go to the lower class. Nothing requires
        grad. A row with NaN or infinity gives NaN and target -1; so does, on a GPU, a row whose label is no class.
        Soft labels are also NaN where the shares of finite logits overflow (of 1e34 and more, in float32).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range; on a CPU also a label
            outside [0, C).
    """
    arguments = _arguments(logits, labels, target, beta, gamma, top_k, label_scheme)
    return JointGradient(*dispatch.choose("joint_gradient", logits, backend)(logits, *arguments))


def joint_objective(
    logits: Tensor,
    labels: Tensor,
    *,
    target: str | Tensor = "mc",
    beta: float = 9.0,
    gamma: float = 0.01,
    top_k: int | None = None,
    label_scheme: str = "main",
    backend: str | None = None,
) -> JointObjective:
    """`joint_gradient` as an autograd function: differentiable in `logits` through `objective` alone.

    One `torch.autograd.grad(out.objective.sum(), images)` yields the image gradient while `out.soft_labels` are already
    there. Arguments, equations and errors are those of `joint_gradient`; a second derivative raises RuntimeError.
    """
    arguments = _arguments(logits, labels, target, beta, gamma, top_k, label_scheme)
    operator = dispatch.choose("joint_gradient", logits, backend)
    return JointObjective(*_JointObjective.apply(operator, logits, *arguments))


def redistribute_labels(
    logits: Tensor,
    labels: Tensor,
    *,
    beta: float = 9.0,
    gamma: float = 0.01,
    top_k: int | None = None,
    label_scheme: str = "main",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The adversarial labels of `joint_gradient` alone: (B, C) float32 (float64 for float64 logits), rows sum to 1.

    Arguments, equations and errors are those of `joint_gradient`, with label_scheme "main" or "sup". `out` is written
    and returned where given: (B, C) in the result's dtype, not requiring grad. Not differentiable.
    """
    checks.logits(logits)
    checks.class_indices("labels", labels, logits)
    rule = _rule(beta, gamma, top_k, label_scheme, LABEL_SCHEMES[:2])
    if out is None:
        result: Tensor = dispatch.choose("redistribute_labels", logits, backend)(logits, labels, *rule)
        return result
    checks.output(out, logits.shape, compute_dtype(logits), logits, "logits")
    dispatch.choose("redistribute_labels.out", logits, backend)(logits, labels, *rule, out=out)
    return out
