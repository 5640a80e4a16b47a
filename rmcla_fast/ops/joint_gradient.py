"""`joint_gradient`, `joint_objective` and `redistribute_labels`: the attack's objective and the adversarial labels."""

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
    """The result of `joint_objective`; only `objective` is differentiable, with respect to the logits."""

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
    """The autograd function of `joint_objective`.

    The forward pass computes d objective / d logits too, and the backward pass scales its rows.
    """

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
    """Check the arguments and return those of the registered operator that follow `logits`."""
    checks.logits(logits)
    checks.class_indices("labels", labels, logits)
    target_labels = None
    if isinstance(target, Tensor):
        checks.class_indices("target", target, logits)
        target_labels, target = target, "given"
    elif not isinstance(target, str) or target not in TARGETS:  # `in` fails on a NumPy array
        raise ValueError(f"target must be one of {', '.join(map(repr, TARGETS))} or an int64 tensor; got {target!r}")
    return labels, target, target_labels, *_checked_rule(beta, gamma, top_k, label_scheme, LABEL_SCHEMES)


def _checked_rule(
    beta: float, gamma: float, top_k: int | None, label_scheme: str, schemes: tuple[str, ...]
) -> tuple[float, float, int | None, str]:
    """Check and return the four arguments that define the adversarial labels."""
    if label_scheme not in schemes:
        raise ValueError(f"label_scheme must be one of {', '.join(map(repr, schemes))}; got {label_scheme!r}")
    if top_k is not None:
        checks.top_k(top_k)
    # Values beyond these bounds change labels by no more than rounding, but would be infinity or 0 in float32 and make
    # the rows NaN.
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
    """Return the attack's objective, its gradient in the logits, and adversarial labels, in one pass over each row.

    From "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), section 3 and equations 2 to 6 of its supplement.
    With z a row of logits, c its label, k over the other classes, p = softmax(z), v_k = -log p_k::

        objective    "mc", "ll" or given   -CE(z, t) = log p_t; t is the k with the largest or smallest z_k, or given
                     "untargeted"          +CE(z, c)
                     "margin"              max_k z_k - z_c
        soft_labels  "main"                y_k = s_k / D, y_c = beta max_k s_k / D, s_k = v_k - min_k v_k + gamma
                     "sup"                 the same with s_k = v_k;  D = sum_k s_k + beta max_k s_k

    A step along the gradient raises the objective, and the true class keeps `y_c >= beta max_k y_k`.

    Args:
        logits: (B, C) float32, float64, float16 or bfloat16, any stride, C >= 2. Arithmetic is float32 (float64 for
            float64).
        labels: (B,) int64, the true classes.
        target: "mc" (most confusing class), "ll" (least likely class), "untargeted", "margin", or an int64 tensor (B,)
            of classes.
        beta: the true class keeps `beta` times the largest share of another class; positive. Above 1e15 it counts as
            1e15.
        gamma: a constant added to every share of "main"; positive. Outside [2**-100, 1e20] it counts as the nearer end.
        top_k: only the `top_k` other classes with the largest v receive mass, and the rest exactly 0. None, or a number
            of at least C - 1, gives mass to all of them.
        label_scheme: "main", "sup", or "none" (soft_labels is None).
        backend: "reference", "cpu", "triton" or "cuda"; None chooses.

    Returns:
        JointGradient: objective (B,), grad_logits (B, C) *not* divided by B, soft_labels (B, C), targets (B,). The
        targets are the labels when untargeted, and the most confusing class for the margin. Ties go to the lower class.
        No output requires grad. A row with NaN or infinity gives NaN and target -1. A logit of magnitude 2**64 or more
        (2**960 for float64) counts as infinite; all other rows give finite results. On a GPU, a row whose label is
        outside [0, C) gives NaN and target -1, too. Inside a transform of torch.func (`grad`, `vmap`, ...) plain torch
        runs, and such a row gives NaN and target -1 on a CPU, too.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range; on a CPU also a label
            outside [0, C).
    """
    arguments = _arguments(logits, labels, target, beta, gamma, top_k, label_scheme)
    if dispatch.inside_transform():
        return JointGradient(*dispatch.reference("joint_gradient")(logits.detach(), *arguments))
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
    """Return the objective and adversarial labels of `joint_gradient`, with the objective differentiable in `logits`.

    `torch.autograd.grad(out.objective.sum(), images)` gives the gradient in the images; `out.soft_labels` come from the
    same forward pass. Arguments, equations and errors are those of `joint_gradient`. A second derivative raises
    RuntimeError, except inside a transform of torch.func, where plain torch runs.
    """
    arguments = _arguments(logits, labels, target, beta, gamma, top_k, label_scheme)
    if dispatch.inside_transform():
        objective, _, soft_labels, targets = dispatch.reference("joint_gradient")(logits, *arguments)
        return JointObjective(objective, None if soft_labels is None else soft_labels.detach(), targets)
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
    """Return only the adversarial labels of `joint_gradient`: (B, C) float32 (float64 for float64 logits).

    Each row sums to 1. Arguments, equations and errors are those of `joint_gradient`, with label_scheme "main" or
    "sup". If `out` is given, the labels are written into it and it is returned; it is (B, C) in the result's dtype,
    must not require grad, and may share memory with the logits or labels. The result is not differentiable.
    """
    checks.logits(logits)
    checks.class_indices("labels", labels, logits)
    rule = _checked_rule(beta, gamma, top_k, label_scheme, LABEL_SCHEMES[:2])
    if out is None:
        result: Tensor = dispatch.choose("redistribute_labels", logits, backend)(logits, labels, *rule)
        return result
    checks.output(out, logits.shape, compute_dtype(logits), logits, "logits")
    dispatch.choose("redistribute_labels.out", logits, backend)(logits, labels, *rule, out=out)
    return out
