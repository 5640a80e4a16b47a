"""Projected gradient descent on the fused operators; FGSM, CE-PGD and CW-PGD are settings of it.

`pgd` attacks one batch. `PGDAttack` is for callers that attack many batches of one model, or need to know which images
the model still classifies correctly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.batches import as_images
from rmcla_fast.attacks.checked_model import CheckedModel, checked
from rmcla_fast.attacks.checks import check_examples
from rmcla_fast.attacks.pgd_settings import MARGIN, PGDSettings
from rmcla_fast.attacks.pgd_step import AttackedBatch, BatchPool
from rmcla_fast.ops import random_start as noisy_images

StepDone = Callable[[int, int], None]
"""Called as (steps taken, images still attacked) for each step, several times in a row after a CUDA graph's replays."""


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    objective: str = "ce",
    margin: float = MARGIN,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    drop_fooled: bool = False,
) -> Tensor:
    """Return adversarial images by l-infinity projected gradient descent (Madry et al., ICLR 2018).

    One restart is `steps` times x <- clip(clip(x + step_size * sign(g), image - epsilon, image + epsilon), 0, 1), with
    g the gradient of +CE(z, label) ("ce") or of -max(z_c - max_k z_k + margin, 0) ("margin", Carlini and Wagner 2017).
    It begins at a uniform start in the ball, clipped to [0, 1], or at the image itself. Other libraries' PGD
    gives the same images.

    On a GPU many steps are replayed from one CUDA graph. The model's Python code (a counter, a draw from `random`)
    then runs only while the graph is captured. A model that waits for the GPU runs uncaptured, with one warning.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, classes). It runs in evaluation mode, and is left as it
            was.
        images: (B, C, H, W) float in [0, 1], or uint8 (value / 255).
        labels: (B,) int64, the true classes.
        epsilon: the radius in [0, 1] pixels (8/255), in (0, 1].
        step_size: positive, in the same unit.
        steps: gradient steps per restart, at least 1.
        objective: "ce" or "margin".
        margin: how far past the boundary the margin objective pushes, in logits.
        restarts: independent starts, at least 1. Those after the first run only on images that do not fool the model
            yet. Without `random_start` all of them are the same.
        random_start: whether each restart begins with uniform noise in the ball.
        seed: the seed of the noise, which `rmcla_fast.random_start` draws. It is the same on every device.
        drop_fooled: whether an image stays at its first iterate (or start) that the model misclassifies, and then costs
            nothing more. Otherwise every image takes all the steps of its restart.

    Returns:
        (B, C, H, W) in the images' dtype (float32 for uint8), inside the ball and [0, 1]. A pixel whose gradient is not
        a number stays where it is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, or a model that returns something else.
    """
    check_examples(images, labels)
    settings = PGDSettings(epsilon, step_size, steps, objective, margin, restarts, random_start, drop_fooled)
    with checked(model) as asked:
        return PGDAttack(asked).perturb(as_images(images, widen=False), labels, settings, seed=seed)


class PGDResult(NamedTuple):
    """The result of `PGDAttack.run`."""

    images: Tensor  # (B, C, H, W), adversarial
    right: Tensor  # (B,) bool: the model classifies the adversarial image correctly
    unmoved: Tensor  # (B,) bool: no step of the last restart moved the image, since its gradient was exactly zero


class PGDAttack:
    """PGD on one model. The CUDA graphs that it captures are used again for later batches."""

    def __init__(self, model: CheckedModel) -> None:
        self.model = model
        self.pool = BatchPool(model)

    def perturb(self, images: Tensor, labels: Tensor, settings: PGDSettings, *, seed: int = 0) -> Tensor:
        """Return adversarial images (B, C, H, W) for float images as `as_images` returns them."""
        return self._search(images, labels, settings, seed, None)[0]

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        settings: PGDSettings,
        *,
        seed: int | Tensor = 0,
        step_done: StepDone | None = None,
    ) -> PGDResult:
        """Return the adversarial images, and which of them the model classifies correctly.

        With `drop_fooled` an image counts as misclassified from its first misclassified iterate on. `seed` may be an
        int64 tensor (B,) with a seed for each image, whose start then depends on that image alone.
        """
        found, rows, unmoved = self._search(images, labels, settings, seed, step_done)
        right = torch.zeros(len(labels), dtype=torch.bool, device=images.device)
        right[self._still_right(found, labels, rows)] = True
        return PGDResult(found, right, unmoved & right)

    def _search(
        self, images: Tensor, labels: Tensor, settings: PGDSettings, seed: int | Tensor, step_done: StepDone | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the adversarial images, the rows of those not yet seen to fool the model, and `PGDResult.unmoved`."""
        self.pool.prepare(settings, images)
        found = images.clone()
        rows = torch.arange(len(images), device=images.device)  # of the images that are not fooled yet
        unmoved = torch.zeros_like(labels, dtype=torch.bool)
        taken, total = 0, settings.steps * settings.restarts
        for restart in range(settings.restarts):
            if restart:
                rows = self._still_right(found, labels, rows)
            if not rows.numel():
                break
            moved, end = _start(images, rows, settings, seed, restart), taken + settings.steps
            start, batch = moved.clone(), None
            while taken < end and rows.numel():
                if batch is None:
                    batch = self.pool.load(moved, _rows_of(images, rows), _rows_of(labels, rows), total - taken)
                steps = min(batch.steps_at_once, end - taken)
                batch.advance(steps)
                moved, times_right = batch.images[: rows.numel()], batch.times_right[: rows.numel()]
                if step_done is not None:
                    _report(step_done, taken, steps, batch, rows.numel())
                taken += steps
                if settings.drop_fooled:
                    right = times_right == steps
                    if not bool(right.all()):  # waits for the GPU, once for the steps of this `advance`
                        found[rows[~right]] = moved[~right]
                        rows, moved, start, batch = rows[right], moved[right], start[right], None
            found[rows] = moved
            unmoved[rows] = (moved == start).flatten(1).all(1)
            taken = end
        return found, rows, unmoved

    def _still_right(self, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return those of the rows whose images the model classifies correctly."""
        if not rows.numel():
            return rows
        return rows[self.model.predict(_rows_of(images, rows)) == _rows_of(labels, rows)]


def _start(images: Tensor, rows: Tensor, settings: PGDSettings, seed: int | Tensor, restart: int) -> Tensor:
    """Return the starting points of these rows of the batch, in new memory.

    With one seed, the noise is drawn for the whole batch, so that it does not depend on which others are left.
    """
    if not settings.random_start:
        return _rows_of(images, rows).clone()
    if isinstance(seed, Tensor):
        seeds = _rows_of(seed, rows)
        rng = torch.stack([seeds, torch.full_like(seeds, restart)], 1)
        return noisy_images(_rows_of(images, rows), settings.epsilon, rng=rng, clip=True)
    rng = torch.tensor([seed, restart], device=images.device)
    return _rows_of(noisy_images(images, settings.epsilon, rng=rng, clip=True), rows)


def _rows_of(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return these rows of a tensor, or the tensor itself if they are all of its rows."""
    return tensor if len(rows) == len(tensor) else tensor[rows]


def _report(step_done: StepDone, taken: int, steps: int, batch: AttackedBatch, count: int) -> None:
    """Call `step_done` for each of the last `steps`, after `taken` others, on the first `count` images of the batch."""
    attacked = [count] * steps
    if batch.settings.drop_fooled:  # an image takes as many steps as it had correctly classified iterates
        number = torch.arange(steps, device=batch.times_right.device)
        attacked = (batch.times_right[:count, None] > number).sum(0).tolist()
    for number_of_step, still in enumerate(attacked, start=taken + 1):
        if still:
            step_done(number_of_step, still)
