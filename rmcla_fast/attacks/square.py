"""Square Attack in the l-infinity ball (Andriushchenko et al., ECCV 2020), which asks the model for logits only.

It begins with vertical stripes at the edge of the ball. Each query moves one random square of the best image so far to
a random corner of the ball, the same for all pixels of the square, and is kept if the margin of the true class shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import CheckedModel, predictions
from rmcla_fast.attacks.slots import Search, Slots
from rmcla_fast.ops import perturb_step, random_start

QUERIES = 5000
SHARE = 0.8  # of the image that the first squares cover
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, after each of which the share is halved


@dataclass
class SquareSlots(Slots):
    """What Square Attack keeps of each image. `images` are the points with the smallest margins so far."""

    best_margin: Tensor  # (B,), the logit of the true class minus the largest other one; minus infinity where fooled
    squares: Tensor  # (B, steps + 1, 2 + C) int32, by steps taken: row of `shapes`, place of the first pixel, signs


class Square(Search):
    """5,000 queries for every image. The squares of an image depend on the seed and its place in the data set."""

    slots: SquareSlots
    look_every = 20

    def __init__(
        self, model: CheckedModel, examples: Examples, seed: int, *, epsilon: float, queries: int = QUERIES
    ) -> None:
        super().__init__(model, examples, seed)
        self.epsilon = epsilon
        self.steps = queries + 1  # the first step asks about the stripes

    def new_slots(self, images: Tensor, labels: Tensor) -> SquareSlots:
        count, channels, height, width = images.shape
        # By steps taken. After none it is the time of the stripes, and after all of them that of a slot that waits.
        self.sides = [side(max(taken - 1, 0), height, width) for taken in range(self.steps + 1)]
        # For each side that occurs, the places of the pixels relative to the first one, which fills up the row.
        kinds = {length: kind for kind, length in enumerate(dict.fromkeys(self.sides))}
        both = [(length, kinds[length]) for length in self.sides]
        self.lengths, self.kinds = torch.tensor(both, dtype=torch.int32, device=images.device).unbind(1)
        self.shapes = torch.zeros(len(kinds), self.sides[0] ** 2, dtype=torch.int64, device=images.device)
        for length, kind in kinds.items():
            line = torch.arange(length, device=images.device)
            self.shapes[kind, : length**2] = (line[:, None] * width + line).flatten()
        return SquareSlots(
            **self.empty(images, labels),
            best_margin=torch.zeros(count, dtype=images.dtype, device=images.device),
            squares=torch.zeros(count, self.steps + 1, 2 + channels, dtype=torch.int32, device=images.device),
        )

    def begin(self, where: Tensor, rows: Tensor, run: Tensor) -> None:
        slots, index = self.slots, where.to(self.slots.labels.device)
        origin = slots.origin[index]
        _, channels, height, width = origin.shape
        half = torch.full((), 0.5, dtype=torch.float32, device=origin.device)
        stripes, drawn = (  # uniform in [0, 1]
            random_start(half.expand(shape).contiguous(), 0.5, rng=self.generators(rows, torch.tensor(step)))
            for step, shape in enumerate(((len(rows), channels, 1, width), (len(rows), self.steps + 1, 2 + channels)))
        )
        slots.images[index] = self._at_edge(origin, origin, _sign(stripes).expand_as(origin))
        slots.best_margin[index] = float("inf")
        top, left = (
            torch.minimum((drawn[..., axis] * (length - self.lengths + 1)).int(), length - self.lengths)
            for axis, length in enumerate((height, width))
        )
        slots.squares[index, :, 0], slots.squares[index, :, 1] = self.kinds.expand_as(top), top * width + left
        slots.squares[index, :, 2:] = _sign(drawn[..., 2:]).int()
        slots.squares[index, 0, 2:] = 0  # the first question is about the stripes as they are

    @torch.no_grad()
    def step(self) -> None:
        slots, active = self.slots, self.active
        channels = slots.images.shape[1]
        square = slots.squares.gather(1, slots.taken[:, None, None].expand(-1, 1, 2 + channels))[:, 0]
        # A CUDA graph serves squares of any size.
        shapes = self.shapes if square.is_cuda else self.shapes[:, : self.sides[self.fewest] ** 2]
        places = (shapes.index_select(0, square[:, 0]) + square[:, 1:2])[:, None].expand(-1, channels, -1)
        pixels, origin = (images.view(*images.shape[:2], -1) for images in (slots.images, slots.origin))
        before = pixels.gather(2, places)
        direction = square[:, 2:, None].to(before.dtype).expand_as(before)
        after = self._at_edge(before, origin.gather(2, places), direction)
        pixels.scatter_(2, places, after)

        logits = self.model(slots.images)
        fooled = predictions(logits) != slots.labels
        slots.fooled |= fooled
        slots.taken += active
        first, second = logits.topk(2).values.to(slots.best_margin.dtype).unbind(1)
        margin = (first - second).masked_fill_(fooled, float("-inf"))  # the first is the true class elsewhere
        better = margin < slots.best_margin  # never again after a point that fooled the model, which thus stays
        torch.minimum(slots.best_margin, margin, out=slots.best_margin)
        pixels.scatter_(2, places, torch.where(better[:, None, None], after, before))

    def _at_edge(self, images: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
        """Return the images with the pixels at the edge of the ball and [0, 1] where the direction is not zero."""
        return perturb_step(images, origin, direction, step_size=3 * self.epsilon, epsilon=self.epsilon)


def side(query: int, height: int, width: int) -> int:
    """Return the side in pixels of the square of this query, which is 0 for the first."""
    share = SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    return min(max(1, round((share * height * width) ** 0.5)), height, width)


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)
