"""FAB-T in the l-infinity ball: the targeted fast adaptive boundary attack (Croce and Hein, ICML 2020).

FAB looks for the nearest adversarial image. Each iteration takes the boundary between the true class and a target for
the plane that the gradient gives, and moves the point to that plane and a little beyond it, mixed with the move of the
image itself to the same plane. A point that fools the model is pulled back towards the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, predictions
from rmcla_fast.attacks.slots import PIXELS, Search, Slots, copy_where
from rmcla_fast.attacks.targets import TargetClasses
from rmcla_fast.ops import perturb_step

STEPS = 100
ALPHA_MAX = 0.1  # the most that the move of the image itself counts
ETA = 1.05  # how far a move goes, where 1 is the plane
BETA = 0.9  # what is left of the way from the image to a point that fools the model
NEWTON = 12  # iterations; tests/test_fab.py has planes that are hardly in reach and need nearly all of them


@dataclass
class FABSlots(Slots):
    """What FAB keeps of each image."""

    targets: Tensor  # (B,) int64: the classes to move towards


class FAB(Search):
    """100 iterations for every image towards each of up to 9 classes, from the image itself.

    The search for an image ends at its first point within epsilon that fools the model, since only this verdict counts
    in AutoAttack. So it does not look for the nearest point, and says nothing about distances.

    An iteration asks the model twice: for the gradient at the point, and for the answer at the next point. The next
    iteration could take both from one question, but only where the answer was right. Near the boundary most points fool
    the model, and each of these would cost a backward pass that nobody needs.
    """

    slots: FABSlots

    def __init__(
        self, model: CheckedModel, examples: Examples, seed: int, *, epsilon: float, steps: int = STEPS
    ) -> None:
        super().__init__(model, examples, seed)
        self.epsilon, self.steps = epsilon, steps

    def new_slots(self, images: Tensor, labels: Tensor) -> FABSlots:
        return FABSlots(**self.empty(images, labels), targets=labels.clone())

    def prepare(self, rows: Tensor, size: int) -> int:
        self.targets = TargetClasses(self.model, self.examples, rows, size)
        return self.targets.count

    def begin(self, where: Tensor, rows: Tensor, run: Tensor) -> None:
        slots, index = self.slots, where.to(self.slots.labels.device)
        slots.targets[index] = self.targets.take(rows, run)
        slots.images[index] = slots.origin[index]

    def step(self) -> None:
        slots, active, first = self.slots, self.active, self.slots.taken == 0
        ahead, gradient = self._boundary()
        largest = gradient.abs().amax(PIXELS)
        slots.no_gradient |= active & first & (largest == 0)
        slots.taken += active

        # The plane in a scale in which no sum over pixels overflows. Where its place is unknown, nothing moves.
        scale = largest.clamp_min(torch.finfo(largest.dtype).tiny)
        normal, ahead = gradient / scale[:, None, None, None], ahead / scale
        of_origin = ahead + ((slots.origin - slots.images) * normal).sum(PIXELS)
        values = torch.stack((ahead, of_origin)).nan_to_num_(nan=0.0)
        points = torch.cat((slots.images, slots.origin)).unflatten(0, (2, -1))
        moves = moves_to_plane(points, normal, values)

        lengths = moves.abs().amax(PIXELS).clamp_min(1e-8)
        alpha = (lengths[0] / lengths.sum(0)).clamp_max(ALPHA_MAX)
        near, far = points.add_(moves, alpha=ETA)
        moved = near.lerp(far, alpha[:, None, None, None]).clamp_(0, 1)
        inside = (moved - slots.origin).abs_().amax(PIXELS) <= self.epsilon  # as AutoAttack compares them
        projected = perturb_step(moved, slots.origin, moved, step_size=0.0, epsilon=self.epsilon)
        copy_where(inside, projected, moved)  # a rounding at most

        with torch.no_grad():
            adversarial = predictions(self.model(moved)) != slots.labels
        slots.fooled |= active & adversarial & inside
        back = torch.where(adversarial & ~slots.fooled, BETA, 1.0).to(moved.dtype)
        moved = slots.origin.lerp(moved, back[:, None, None, None])  # a weight of 1 changes no bit
        copy_where(active, moved, slots.images)  # the others stay, since their images are a result

    def _boundary(self) -> tuple[Tensor, Tensor]:
        """Return how far the target's logit is ahead of the true one (B,), and its gradient (B, C, H, W)."""
        labels, targets = self.slots.labels[:, None], self.slots.targets[:, None]
        differences: list[Tensor] = []

        def direction_of(logits: Tensor) -> Tensor:
            differences.append((logits.gather(1, targets) - logits.gather(1, labels))[:, 0])
            return torch.zeros_like(logits).scatter_(1, targets, 1.0).scatter_(1, labels, -1.0)

        gradient = self.model.image_gradient(self.slots.images, direction_of)
        return differences[0].to(gradient.dtype), gradient


def moves_to_plane(points: Tensor, normal: Tensor, values: Tensor) -> Tensor:
    """Return the moves of the points to a plane that are shortest in the l-infinity norm and stay inside [0, 1].

    Every pixel moves by the same length L, or to its bound if that is nearer. The change f(L) of the value, which is
    wanted to be |value|, is concave and piecewise linear in L. So Newton's method from below never overshoots, and once
    it is on the right piece it is there. If the plane is out of reach, every pixel moves to its bound.

    Args:
        points: (K, B, C, H, W) in [0, 1].
        normal: (B, C, H, W), the normals of the planes. A pixel where it is 0 does not move.
        values: (K, B), those of the linear function at the points; it is 0 on the plane.

    Returns:
        (K, B, C, H, W).
    """
    weight, wanted = normal.abs(), values.abs()
    way = normal.sign() * -values.sign()[..., None, None, None]
    room = way.clamp_min(0).sub_(points).abs_()
    of_bound = room * weight  # the change of the value by a pixel that moves to its bound
    length = wanted / weight.sum(PIXELS).clamp_min(torch.finfo(weight.dtype).tiny)
    for _ in range(NEWTON):
        free = torch.gt(room, length[..., None, None, None], out=torch.empty_like(room))  # 1 or 0, faster than bool
        rate = (free * weight).sum(PIXELS)
        at_bounds = of_bound.addcmul(free, of_bound, value=-1).sum(PIXELS)
        longer = length.fmax((wanted - at_bounds) / rate)  # if no pixel is free: infinite, or 0 / 0
        if not length.is_cuda and torch.equal(longer, length):
            break
        length = longer
    return room.minimum(length[..., None, None, None]).mul_(way)
