"""The squared l2 norm of each image's input gradient, as in supplementary table 4 of Wang and Zhang (2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.checks import check_classes, check_count, check_examples
from rmcla_fast.ops import soft_cross_entropy
from rmcla_fast.ops.tensors import finite_rows

PAPER_DIVISOR = 510.0
STRICT_DIVISOR = 255.0**2
WHY_TWO_SCALES = (
    'The paper says that in [0, 255] pixels the figure is "127.5 times smaller" than in [-1, 1], though a squared norm '
    "shrinks by 127.5 squared. The paper scale is therefore ||g||^2 / 510 for a gradient taken on [0, 1] images (our "
    "inference); the strict scale is ||g||^2 / 255^2."
)


@dataclass(frozen=True)
class GradientNorm:
    """The squared gradient norms of N images, in the scale of [0, 1] images and in the two scales of the paper."""

    squared: Tensor  # (N,) float64, ||d CE / d image||^2; NaN where a logit is not finite

    @property
    def paper(self) -> Tensor:
        """Return the norms (N,) in the scale of the paper's table 4, as we infer it."""
        return self.squared / PAPER_DIVISOR

    @property
    def strict(self) -> Tensor:
        """Return the norms (N,) in [0, 255] pixel units."""
        return self.squared / STRICT_DIVISOR

    @property
    def finite(self) -> Tensor:
        """Return which norms are finite, (N,) bool."""
        return self.squared.isfinite()

    def summary(self) -> dict[str, Any]:
        """Return maximum and mean of the finite norms in both scales, and how many norms are not finite."""
        some = bool(self.finite.any())

        def scale(values: Tensor) -> dict[str, float | None]:
            kept = values[self.finite]
            return {"max": kept.max().item() if some else None, "mean": kept.mean().item() if some else None}

        return {
            "images": self.squared.numel(),
            "nonfinite": int((~self.finite).sum()),
            "paper_scale": scale(self.paper),
            "strict_scale": scale(self.strict),
        }


def gradient_norm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 256,
    progress: Callable[[float], None] | None = None,
) -> GradientNorm:
    """Return ||d CE(model(x), label) / d x||^2 for every image, by one forward and one backward pass.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, classes). It runs in evaluation mode, and is left as it
            was.
        images: (N, C, H, W) float in [0, 1], or uint8 (value / 255).
        labels: (N,) int64.
        batch_size: images per pass.
        progress: called with the fraction done.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, or a model that returns something else.
    """
    check_examples(images, labels)
    check_count("batch_size", batch_size)
    norms = []
    with checked(model) as asked:
        for batch in Examples(asked, images, labels).batches(batch_size):
            inputs = batch.images.requires_grad_(True)
            logits = asked(inputs)
            check_classes(batch.labels, logits.shape[1])
            # The images do not mix, so the gradient of the sum holds each image's own.
            loss = soft_cross_entropy(logits, batch.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
            squared = gradient.double().square().flatten(1).sum(1)
            norms.append(squared.masked_fill(~finite_rows(logits.detach()), float("nan")).cpu())
            if progress is not None:
                progress((int(batch.rows[-1]) + 1) / len(labels))
    return GradientNorm(torch.cat(norms) if norms else torch.zeros(0, dtype=torch.float64))
