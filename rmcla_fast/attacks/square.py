"""Square Attack in the l-infinity ball (Andriushchenko et al., ECCV 2020), which asks the model for logits only.

It begins with vertical stripes at the edge of the ball. Each query moves one random square of the best image so far to a
random corner of the ball, the same for each channel of the square, and is kept if the margin of the true class shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, predictions
from rmcla_fast.attacks.slots import Search, Slots, copy_where
from rmcla_fast.ops import random_start

QUERIES = 5000
SHARE = 0.8  # of the image that the first squares cover
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, after each of which the share is halved


@dataclass
class SquareSlots(Slots):
    """What Square Attack keeps of each image."""

    best: Tensor  # (B, C, H, W), the point with the smallest margin
    best_margin: Tensor  # (B,), the logit of the true class minus the largest other one
    drawn: Tensor  # (B, QUERIES, 2 + C) float32, uniform in [0, 1): row, column and signs of each query's square


class Square(Search):
    """5,000 queries for every image. The squares of an image depend on the seed and its place in the data set."""

    def __init__(
        self, model: CheckedModel, examples: Examples, seed: int, *, epsilon: float, queries: int = QUERIES
    ) -> None:
        super().__init__(model, examples, seed)
        self.epsilon = epsilon
        self.steps = queries + 1  # the first step asks about the stripes

    def new_slots(self, images: Tensor, labels: Tensor) -> SquareSlots:
        count, channels, self.height, self.width = images.shape
        sides = [side(query, self.height, self.width) for query in range(self.steps)]
        self.sides = torch.tensor(sides, device=images.device)
        self.across = torch.arange(self.height, device=images.device)[:, None]
        self.along = torch.arange(self.width, device=images.device)
        off = torch.zeros_like(labels, dtype=torch.bool)
        return SquareSlots(
            origin=images,
            images=images.clone(),
            labels=labels,
            taken=torch.zeros_like(labels),
            fooled=off,
            idle=~off,
            no_gradient=off.clone(),
            best=images.clone(),
            best_margin=torch.zeros(count, dtype=images.dtype, device=images.device),
            drawn=torch.zeros(count, self.steps, 2 + channels, device=images.device),
        )

    def begin(self, where: Tensor, rows: Tensor, run: Tensor) -> None:
        slots, index = self.slots, where.to(self.slots.labels.device)
        origin, drawn = slots.origin[index], slots.drawn
        half = torch.full((), 0.5, device=drawn.device)
        stripes, squares = (
            random_start(half.expand(shape).contiguous(), 0.5, rng=self.generators(rows, torch.tensor(step)))
            for step, shape in enumerate(((len(rows), origin.shape[1], 1, self.width), (len(rows), *drawn.shape[1:])))
        )
        drawn[index] = squares
        slots.images[index] = (origin + self.epsilon * _sign(stripes).to(origin.dtype)).clamp(0, 1)

    @torch.no_grad()
    def step(self) -> None:
        slots, active, first = self.slots, self.active, self.slots.taken == 0
        logits = self.model(slots.images)
        slots.fooled |= active & (predictions(logits) != slots.labels)
        slots.taken += active
        labels = slots.labels[:, None]
        margin = (logits.gather(1, labels) - logits.scatter(1, labels, float("-inf")).amax(1, keepdim=True))[:, 0]
        better = first | (margin < slots.best_margin)
        copy_where(better, slots.images, slots.best)
        copy_where(better, margin.to(slots.best_margin.dtype), slots.best_margin)

        query = (slots.taken - 1).clamp(0, self.steps - 2)
        drawn = slots.drawn.gather(1, query[:, None, None].expand(-1, 1, slots.drawn.shape[2]))[:, 0]
        size = self.sides[query]
        top, left = (
            (drawn[:, axis] * (length - size + 1)).long().clamp(max=length - size)[:, None, None]
            for axis, length in enumerate((self.height, self.width))
        )
        size = size[:, None, None]
        inside = (self.across >= top) & (self.across < top + size) & (self.along >= left) & (self.along < left + size)
        corner = self.epsilon * _sign(drawn[:, 2:, None, None]).to(slots.origin.dtype)
        moved = torch.where(inside[:, None], (slots.origin + corner).clamp_(0, 1), slots.best)
        copy_where(self.active, moved, slots.images)  # the others stay, since their images are a result


def side(query: int, height: int, width: int) -> int:
    """Return the side in pixels of the square of this query, 0 for the first."""
    share = SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    return min(max(1, round((share * height * width) ** 0.5)), height, width)


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)
