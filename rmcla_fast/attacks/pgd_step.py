"""One step of the gradient attacks on a batch in place, and the same step replayed from a CUDA graph.

`Ascent` runs it eagerly. `CapturedAscent` keeps its tensors where they are, for `size` images at the most: fewer fill
the first rows, and what lies in the others is computed along, moves nothing and is not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from rmcla_fast.attacks.checked_model import CheckedModel, predictions
from rmcla_fast.cuda_graph import CaptureFailed, Work, captured_work
from rmcla_fast.ops import joint_gradient, perturb_step

CHUNK = 10  # steps between two looks at what is fooled: each look waits for the GPU
WORTH_CAPTURING = 20  # steps that are still to come: a capture costs about as much as WARM_UP + 1 eager ones

Capture = Callable[[Work], Work]


@dataclass(frozen=True)
class Rule:
    """What a step does: the arguments of `pgd` that a graph has built in."""

    objective: str
    margin: float
    step_size: float
    epsilon: float
    drop: bool


class _Step:
    """The step itself, on tensors that it changes in place."""

    images: Tensor  # (B, C, H, W), on their way up
    origin: Tensor  # (B, C, H, W), the centres of the balls
    labels: Tensor  # (B,) int64
    fooled: Tensor  # (B,) bool: the model got an iterate wrong, and with `rule.drop` the image stays there
    held: Tensor  # (B,) int64: iterates of this `advance` that the model got right, counted with `rule.drop`

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def take(self, images: Tensor, origin: Tensor, labels: Tensor) -> None:
        self.images, self.origin, self.labels = images, origin, labels
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        self.held = torch.zeros_like(labels)

    def run(self, model: CheckedModel) -> None:
        """Asks the model, marks what is fooled, and moves the rest."""
        rule = self.rule
        fooled = self.fooled if rule.drop else None
        _, gradient = image_gradient(model, self.images, self.labels, rule.objective, rule.margin, fooled)
        if fooled is not None:
            self.held += ~fooled
        perturb_step(
            self.images, self.origin, gradient, step_size=rule.step_size, epsilon=rule.epsilon, out=self.images
        )


class Ascent(_Step):
    """Some images on their way up, step by step."""

    chunk = 1

    def __init__(self, model: CheckedModel, rule: Rule) -> None:
        super().__init__(rule)
        self._model = model

    def load(self, images: Tensor, origin: Tensor, labels: Tensor) -> None:
        """Takes over `images` (B, C, H, W), which it will write, the balls' centres, and `labels` (B,)."""
        self.take(images, origin, labels)

    def advance(self, steps: int) -> None:
        self.held.zero_()
        for _ in range(steps):
            self.run(self._model)


class CapturedAscent(_Step):
    """The same in memory that does not move, for up to as many images as it is made with, the step captured once.

    It does not keep the model, which keeps it.
    """

    chunk = CHUNK

    def __init__(
        self, model: CheckedModel, rule: Rule, images: Tensor, origin: Tensor, labels: Tensor, capture: Capture
    ) -> None:
        super().__init__(rule)
        self.take(images.clone(), origin.clone(), labels.clone())
        # The capture may run the step on these examples: nothing of that is left once they are loaded.
        self._replay = capture(partial(self.run, model))

    def load(self, images: Tensor, origin: Tensor, labels: Tensor) -> None:
        """Copies the examples into the first rows; the others keep whatever was there, and stay."""
        count = len(labels)
        self.images[:count].copy_(images)
        self.origin[:count].copy_(origin)
        self.labels[:count].copy_(labels)
        self.fooled.fill_(True)
        self.fooled[:count].fill_(False)

    def advance(self, steps: int) -> None:
        self.held.zero_()
        for _ in range(steps):
            self._replay()


def capture_for(device: torch.device) -> Capture | None:
    """How a step on `device` is captured; None where it runs eagerly."""
    return partial(captured_work, device) if device.type == "cuda" else None


@cache
def keep_freed_memory() -> None:
    """Once a process: glibc no longer returns the top of its heap to the system when a step's activations are freed.

    It returns what exceeds twice the largest block that was ever freed, so that each step would fault the same pages in
    again. A larger block, freed untouched, costs nothing and ends that.
    """
    torch.empty(24 << 20, dtype=torch.uint8)


class Ascents:
    """The ascents of one attack: an eager one, and captured ones of the sizes that turned out to be worth it.

    Captured ones stay with the model that they ask, for the next batch and the next attack of the same rule.
    """

    def __init__(self, model: CheckedModel, rule: Rule, images: Tensor) -> None:
        if images.device.type == "cpu":
            keep_freed_memory()
        self._model, self._rule = model, rule
        self._eager = Ascent(model, rule)
        self._capture = None if model.uncapturable else capture_for(images.device)
        key = (rule, images.shape[1:], images.dtype, images.stride()[1:], images.device)
        if model.captured_for != key:
            model.captured_for, model.captured = key, {}

    def load(self, images: Tensor, origin: Tensor, labels: Tensor, steps_left: int) -> Ascent | CapturedAscent:
        """An ascent that holds these images; it may write them. `steps_left` of the attack say if a capture pays."""
        ascent = self._fitting(images, origin, labels, steps_left)
        ascent.load(images, origin, labels)
        return ascent

    def _fitting(self, images: Tensor, origin: Tensor, labels: Tensor, steps_left: int) -> Ascent | CapturedAscent:
        """The smallest captured one that the images fill to half or more; else, with many steps left, a new one."""
        count, capture = len(labels), self._capture
        if capture is None:
            return self._eager
        few = steps_left < WORTH_CAPTURING
        for size, captured in sorted(self._model.captured.items()):
            if size >= count and (few or size <= 2 * count):
                return captured
        if few:
            return self._eager
        try:
            captured = CapturedAscent(self._model, self._rule, images, origin, labels, capture)
        except CaptureFailed as error:
            self._capture, self._model.uncapturable = None, True
            warnings.warn(
                f"the attack runs without a CUDA graph, since the model cannot be captured in one: {error}",
                stacklevel=2,
            )
            return self._eager
        self._model.captured[count] = captured
        return captured


def image_gradient(
    model: CheckedModel, images: Tensor, labels: Tensor, objective: str, margin: float, fooled: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, C), and the images' gradient of what the attack ascends; 0 where it is not a number.

    `fooled` (B,) bool gains the images that the model gets wrong; their gradient is 0.
    """
    images = images.detach().requires_grad_(True)
    logits = model(images)
    answered = logits.detach()
    joint = joint_gradient(
        answered, labels, target="untargeted" if objective == "ce" else "margin", label_scheme="none"
    )
    direction = joint.grad_logits
    if objective == "margin":  # the hinge: nothing to gain from a logit that is `margin` past the boundary
        direction = direction * (joint.objective < margin)[:, None]
    # Rows without a finite answer are misclassified already, and must not become images with NaN in them.
    direction = direction.nan_to_num_(nan=0.0)
    if fooled is not None:
        fooled.logical_or_(predictions(answered) != labels)
        direction.masked_fill_(fooled[:, None], 0.0)
    (gradient,) = torch.autograd.grad(logits, images, direction, allow_unused=True)
    if gradient is None:  # a model that does not look at its images
        return answered, torch.zeros_like(images)
    return answered, gradient.nan_to_num_(nan=0.0)
