"""Target classes that the fused operator does not choose itself: a random class, and the nearest ("mosa", "mix").

From "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rmcla_fast.ops import checks
from rmcla_fast.ops.philox import STREAM_RANDOM_TARGETS, philox_uniform


def class_target(target: str, logits: Tensor, labels: Tensor, rng: Tensor, weight: Tensor | None) -> str | Tensor:
    """Return the target for `joint_gradient`: a name that it knows, or (B,) int64 classes other than the labels.

    Args:
        target: the target of a recipe.
        logits: (B, C), not requiring grad.
        labels: (B,) int64.
        rng: (seed, step) int64, read for "random".
        weight: (C, features), the weight of the last layer, read for "mosa" and "mix".
    """
    if target == "random":
        return random_class(labels, logits.shape[1], rng)
    if target not in ("mosa", "mix"):
        return target
    assert weight is not None
    labels = labels.clamp(0, logits.shape[1] - 1)  # `joint_gradient` handles labels outside [0, C)
    nearest = nearest_class(logits, labels, weight)
    if target == "mosa":
        return nearest
    confusing = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return torch.where(logits.argmax(1) == labels, nearest, confusing)


def random_class(labels: Tensor, num_classes: int, rng: Tensor) -> Tensor:
    """Draw (B,) int64 classes, uniformly from those other than the label.

    Each is a function of `rng`, (seed, step), and of its row.
    """
    checks.random_state(rng, labels, "labels")
    uniform = philox_uniform(rng, len(labels), STREAM_RANDOM_TARGETS)
    drawn = (uniform.double() * (num_classes - 1)).long()  # double: the product must not round up to num_classes - 1
    return drawn + (drawn >= labels)


def nearest_class(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return (B,) int64: the class k other than the label c with the smallest (z_c - z_k) / norm(w_c - w_k).

    A margin z_c - z_k of at most 1e-4 counts as 1e4.

    Raises:
        ValueError: `weight` does not have C rows.
    """
    if weight.shape[0] != logits.shape[1]:
        raise ValueError(
            f"target 'mosa' needs the model's last nn.Linear to be its classifier, but it has {weight.shape[0]} "
            f"outputs and the model returns {logits.shape[1]} logits"
        )
    z = logits.float()
    margin = z.gather(1, labels[:, None]) - z
    margin = torch.where(margin <= 1e-4, 1e4, margin)
    rows = weight.float()
    distance = margin / torch.cdist(rows[labels], rows)
    return distance.scatter(1, labels[:, None], torch.inf).argmin(1)


def last_linear(model: nn.Module) -> Tensor:
    """Return the weight (outputs, features) of the model's last `nn.Linear`.

    Raises:
        ValueError: the model has no `nn.Linear`.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            "target 'mosa' reads the weight of the last nn.Linear, and the model has none; use target 'mc' instead"
        )
    return layers[-1].weight.detach()
