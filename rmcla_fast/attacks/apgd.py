"""Auto-PGD in the l-infinity ball (Croce and Hein, ICML 2020), on cross entropy or on the targeted DLR loss.

APGD has no step size to choose. It begins with 2 epsilon, mixes each step with the one before it, and at fixed
checkpoints halves the step size of an image whose loss no longer rises, which then goes on from its best point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, predictions
from rmcla_fast.attacks.slots import PIXELS, Search, Slots, copy_where, some
from rmcla_fast.attacks.targets import TargetClasses
from rmcla_fast.ops import joint_gradient, perturb_step, random_start

STEPS = 100
MINIMUM_CLASSES = 4  # of the targeted DLR loss
RHO = 0.75  # a window in which the loss rose in a smaller share of the steps ends with a smaller step size
MOMENTUM = 0.75  # the weight of the new step; the step before it has the rest


@dataclass
class APGDSlots(Slots):
    """What APGD keeps of each image. "Run" is the current one, and "window" the steps since the last checkpoint."""

    targets: Tensor  # (B,) int64: the classes to move towards; the targeted loss alone reads them
    previous: Tensor  # (B, C, H, W), the point of the step before
    best: Tensor  # (B, C, H, W), the point with the largest loss of the run
    best_gradient: Tensor  # (B, C, H, W), the signs of the gradient there
    best_loss: Tensor  # (B,)
    last_loss: Tensor  # (B,)
    loss_at_checkpoint: Tensor  # (B,), the largest loss of the run at the last checkpoint
    rises: Tensor  # (B,) int64: how often the loss rose within the window
    halved: Tensor  # (B,) bool: the step size was halved at the last checkpoint
    step_size: Tensor  # (B,) float32


class APGD(Search):
    """100 steps for every image from a uniform start in the ball; targeted, as many towards each of up to 9 classes."""

    slots: APGDSlots

    def __init__(
        self,
        model: CheckedModel,
        examples: Examples,
        seed: int,
        *,
        epsilon: float,
        targeted: bool = False,
        steps: int = STEPS,
    ) -> None:
        super().__init__(model, examples, seed)
        self.epsilon, self.targeted = epsilon, targeted
        self.steps = steps + 1  # the first step only asks about the start
        # By steps taken: the length of the window that ends there, or 0. The first step takes no move.
        self.windows = torch.zeros(self.steps + 1, dtype=torch.int64)
        ends = checkpoints(steps)
        for begin, end in zip([0, *ends], ends, strict=False):
            self.windows[end + 1] = end - begin

    def new_slots(self, images: Tensor, labels: Tensor) -> APGDSlots:
        self.windows = self.windows.to(labels.device)
        loss = torch.zeros(len(labels), dtype=images.dtype, device=images.device)
        return APGDSlots(
            **self.empty(images, labels),
            targets=labels.clone(),
            previous=images.clone(),
            best=images.clone(),
            best_gradient=torch.zeros_like(images),
            best_loss=loss,
            last_loss=loss.clone(),
            loss_at_checkpoint=loss.clone(),
            rises=torch.zeros_like(labels),
            halved=torch.zeros_like(labels, dtype=torch.bool),
            step_size=torch.zeros_like(loss, dtype=torch.float32),
        )

    def prepare(self, rows: Tensor, size: int) -> int:
        if not self.targeted:
            return 1
        self.targets = TargetClasses(self.model, self.examples, rows, size)
        return self.targets.count

    def begin(self, where: Tensor, rows: Tensor, run: Tensor) -> None:
        slots, index = self.slots, where.to(self.slots.labels.device)
        if self.targeted:
            slots.targets[index] = self.targets.take(rows, run)
        rng = self.generators(rows, run)
        start = random_start(slots.origin[index], self.epsilon, rng=rng, clip=True)
        slots.images[index] = slots.previous[index] = start
        slots.best_loss[index], slots.last_loss[index] = -float("inf"), float("inf")
        slots.rises[index] = 0
        slots.halved[index] = True
        slots.step_size[index] = 2 * self.epsilon

    def step(self) -> None:
        slots, active, first = self.slots, self.active, self.slots.taken == 0
        loss, gradient = self._loss_and_gradient()
        if some(first):
            slots.no_gradient |= active & first & (gradient.abs().amax(PIXELS) == 0)
        gradient.sign_()  # all that a step reads
        slots.fooled |= active & (self._answers != slots.labels)
        slots.taken += active
        moving = self.active  # the others stay, since their images are a result

        # The best point of the run so far. The start counts as a checkpoint, too.
        better = loss > slots.best_loss
        copy_where(better, slots.images, slots.best)
        copy_where(better, gradient, slots.best_gradient)
        copy_where(better, loss, slots.best_loss)
        copy_where(first, loss, slots.loss_at_checkpoint)
        slots.rises += loss > slots.last_loss
        slots.last_loss.copy_(loss)

        window = self.windows[slots.taken]
        if some(window > 0):
            self._end_window(window, moving, gradient)

        # images + weight * (stepped - images) + (1 - weight) * (images - previous); the weight of a first step is 1.
        # An image that stays takes a step of size 0 with weight 1, which changes no bit of it.
        size = slots.step_size * moving
        stepped = perturb_step(slots.images, slots.origin, gradient, step_size=size, epsilon=self.epsilon)
        weight = torch.where(moving & ~first, MOMENTUM, 1.0).to(stepped.dtype)
        moved = slots.previous.lerp(slots.images, 2.0).lerp_(stepped, weight[:, None, None, None])
        slots.previous.copy_(slots.images)
        perturb_step(moved, slots.origin, moved, step_size=0.0, epsilon=self.epsilon, out=slots.images)

    def _end_window(self, window: Tensor, moving: Tensor, gradient: Tensor) -> None:
        """Halve the step size where the loss rose too rarely in a window that ends here, and go on from the best point.

        It is also halved if neither the best loss nor the step size has changed since the last checkpoint.

        Args:
            window: (B,), the length of the window that ends here, or 0 if none does.
            moving: (B,) bool, the images that take another step.
            gradient: (B, C, H, W), the signs for that step; changed in place.
        """
        slots, checkpoint = self.slots, window > 0
        stuck = ~slots.halved & (slots.best_loss <= slots.loss_at_checkpoint)
        halve = checkpoint & ((slots.rises <= RHO * window) | stuck)
        copy_where(checkpoint, halve, slots.halved)
        copy_where(checkpoint, slots.best_loss, slots.loss_at_checkpoint)
        slots.rises.masked_fill_(checkpoint, 0)
        slots.step_size.mul_(torch.where(halve, 0.5, 1.0))
        copy_where(halve & moving, slots.best, slots.images)
        copy_where(halve & moving, slots.best_gradient, gradient)

    def _loss_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) at the points and its gradient (B, C, H, W), and keep the model's answers (B,)."""
        slots = self.slots
        losses: list[Tensor] = []

        def direction_of(logits: Tensor) -> Tensor:
            self._answers = predictions(logits)
            if self.targeted:
                loss, direction = targeted_dlr(logits, slots.labels, slots.targets)
            else:
                joint = joint_gradient(logits, slots.labels, target="untargeted", label_scheme="none")
                loss, direction = joint.objective, joint.grad_logits
            losses.append(loss)
            # The step reads signs only. Scaled rows keep the gradient of a confident model above the smallest float.
            return (direction / direction.abs().amax(1, keepdim=True)).nan_to_num_(nan=0.0)

        gradient = self.model.image_gradient(slots.images, direction_of)
        return losses[0].to(slots.best_loss.dtype), gradient


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which step sizes are halved: 22, 41, 57, 70, 80, 87, 93 and 99 of 100.

    The first window is 22 % of the steps. Each is 3 % shorter than the one before it, and none is shorter than 6 %.
    """
    window, shorter, shortest = (max(1, int(share * steps)) for share in (0.22, 0.03, 0.06))
    ends = [window]
    while ends[-1] + max(window - shorter, shortest) <= steps:
        window = max(window - shorter, shortest)
        ends.append(ends[-1] + window)
    return ends


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targeted difference-of-logits-ratio loss and a positive multiple of its gradient in the logits.

    The loss is -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), where z_(k) is the k-th largest logit (Croce and Hein,
    ICML 2020, equation 7). It does not change if the logits are scaled or shifted.

    Args:
        logits: (B, classes), at least 4 classes.
        labels: (B,) int64, y.
        targets: (B,) int64, t.

    Returns:
        The loss (B,), and the gradient (B, classes) times the square of the denominator.
    """
    top = logits.topk(4)
    first, _, third, fourth = top.values.unbind(1)
    of_target, of_label = logits.gather(1, torch.stack((targets, labels), 1)).unbind(1)
    ahead, spread = of_target - of_label, first - (third + fourth) / 2
    # d(ahead / spread) * spread^2. A class occurs at most twice, so the sum does not depend on the order.
    largest, _, of_third, of_fourth = top.indices.unbind(1)  # to index by a list would copy it to the GPU, and wait
    classes = torch.stack((targets, labels, largest, of_third, of_fourth), 1)
    shares = torch.stack((spread, -spread, -ahead, ahead / 2, ahead / 2), 1)
    direction = torch.zeros_like(logits).scatter_add_(1, classes, shares)
    return ahead / spread.clamp_min(1e-12), direction
