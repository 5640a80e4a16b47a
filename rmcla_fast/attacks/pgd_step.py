"""One step of PGD on a batch, in place, and the same step replayed from a CUDA graph.

`EagerBatch` runs the step. `CapturedBatch` replays it on tensors that stay where they are, for a fixed number of
images. Fewer images fill its first rows. The step computes the other rows as well, but does not move them, and their
results are not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from rmcla_fast.attacks.checked_model import CheckedModel, predictions
from rmcla_fast.attacks.pgd_settings import MARGIN, PGDSettings
from rmcla_fast.cuda_graph import CaptureFailed, Work, captured_work
from rmcla_fast.ops import joint_gradient, perturb_step

CAPTURED_STEPS = 10  # steps between two checks for fooled images, which wait for the GPU
WORTH_CAPTURING = 20  # the fewest remaining steps for a capture, which costs about WARM_UP + 1 eager steps

Capture = Callable[[Work], Work]
GraphKey = tuple[PGDSettings, torch.Size, torch.dtype, tuple[int, ...], torch.device]


class AttackedBatch:
    """The tensors of a batch under attack, which each step changes in place."""

    images: Tensor  # (B, C, H, W), the current iterates
    origin: Tensor  # (B, C, H, W), the centres of the balls
    labels: Tensor  # (B,) int64
    fooled: Tensor  # (B,) bool: the image stays at an iterate that fooled the model; used only with `drop_fooled`
    times_right: Tensor  # (B,) int64: correctly classified iterates of the last `advance`; only with `drop_fooled`

    def __init__(self, settings: PGDSettings) -> None:
        self.settings = settings

    def load(self, images: Tensor, origin: Tensor, labels: Tensor) -> None:
        """Use these tensors; the steps write into `images`."""
        self.images, self.origin, self.labels = images, origin, labels
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        self.times_right = torch.zeros_like(labels)

    def step(self, model: CheckedModel) -> None:
        """Run the model, mark the images that fool it, and move the others."""
        settings = self.settings
        fooled = self.fooled if settings.drop_fooled else None
        direction = partial(
            pgd_direction, labels=self.labels, objective=settings.objective, margin=settings.margin, fooled=fooled
        )
        gradient = model.image_gradient(self.images, direction)
        if fooled is not None:
            self.times_right += ~fooled
        perturb_step(
            self.images,
            self.origin,
            gradient,
            step_size=settings.step_size,
            epsilon=settings.epsilon,
            out=self.images,
        )


class EagerBatch(AttackedBatch):
    """A batch whose steps run one by one."""

    steps_at_once = 1

    def __init__(self, model: CheckedModel, settings: PGDSettings) -> None:
        super().__init__(settings)
        self._model = model

    def advance(self, steps: int) -> None:
        self.times_right.zero_()
        for _ in range(steps):
            self.step(self._model)


class CapturedBatch(AttackedBatch):
    """A batch at a fixed place in memory, whose step is captured once. It holds at most as many images as at first."""

    steps_at_once = CAPTURED_STEPS

    def __init__(
        self,
        model: CheckedModel,
        settings: PGDSettings,
        capture: Capture,
        images: Tensor,
        origin: Tensor,
        labels: Tensor,
    ) -> None:
        super().__init__(settings)
        super().load(images.clone(), origin.clone(), labels.clone())
        # The capture may run the step on these examples. `load` overwrites what that changes.
        self._replay = capture(partial(self.step, model))

    def load(self, images: Tensor, origin: Tensor, labels: Tensor) -> None:
        """Copy the examples into the first rows. The other rows count as fooled, so that they do not move."""
        count = len(labels)
        self.images[:count].copy_(images)
        self.origin[:count].copy_(origin)
        self.labels[:count].copy_(labels)
        self.fooled.fill_(True)
        self.fooled[:count].fill_(False)

    def advance(self, steps: int) -> None:
        self.times_right.zero_()
        for _ in range(steps):
            self._replay()


class BatchPool:
    """The batches in which one model is attacked: an eager one, and captured ones of sizes for which that pays off.

    Captured batches are kept for later images, and for later attacks that have the same step.
    """

    def __init__(self, model: CheckedModel) -> None:
        self._model = model
        self.captured: dict[int, CapturedBatch] = {}  # by the number of images that they can hold
        self.captured_for: GraphKey | None = None
        self.uncapturable = False

    def prepare(self, settings: PGDSettings, images: Tensor) -> None:
        """Get ready for an attack on these images: drop the captured batches if they do not fit it."""
        if images.device.type == "cpu":
            keep_freed_memory()
        self._settings = settings.one_step
        key = (self._settings, images.shape[1:], images.dtype, images.stride()[1:], images.device)
        if self.captured_for != key:
            self.captured_for, self.captured = key, {}

    def load(self, images: Tensor, origin: Tensor, labels: Tensor, steps_left: int) -> EagerBatch | CapturedBatch:
        """Return a batch that holds these images, and that may write into them.

        `steps_left` is how many steps the attack may still take, which decides whether a capture pays off.
        """
        batch: EagerBatch | CapturedBatch | None = self._captured_batch(images, origin, labels, steps_left)
        if batch is None:
            batch = EagerBatch(self._model, self._settings)
        batch.load(images, origin, labels)
        return batch

    def _captured_batch(self, images: Tensor, origin: Tensor, labels: Tensor, steps_left: int) -> CapturedBatch | None:
        """Return a captured batch for these images, or None if none pays off.

        With many steps left, it is the smallest batch that the images fill to half or more, or else a new one. With few
        steps left, it is the smallest batch that can hold the images.
        """
        count, capture = len(labels), capture_for(images.device)
        if capture is None or self.uncapturable:
            return None
        few = steps_left < WORTH_CAPTURING
        for size, captured in sorted(self.captured.items()):
            if size >= count and (few or size <= 2 * count):
                return captured
        if few:
            return None
        try:
            captured = CapturedBatch(self._model, self._settings, capture, images, origin, labels)
        except CaptureFailed as error:
            self.uncapturable = True
            warnings.warn(
                f"the attack runs without a CUDA graph, since the model cannot be captured in one: {error}",
                stacklevel=2,
            )
            return None
        self.captured[count] = captured
        return captured


def capture_for(device: torch.device) -> Capture | None:
    """Return how a step on `device` is captured; None where it runs eagerly."""
    return partial(captured_work, device) if device.type == "cuda" else None


@cache
def keep_freed_memory() -> None:
    """Keep glibc from returning the top of its heap to the system; done once per process.

    glibc returns what exceeds twice the largest block that was ever freed. Each step would then cause page faults for
    the memory that the activations of the previous step had used. Freeing one larger block, whose pages are never
    touched, ends that and costs nothing.
    """
    torch.empty(24 << 20, dtype=torch.uint8)


def pgd_direction(
    logits: Tensor,
    labels: Tensor,
    *,
    objective: str = "ce",
    margin: float = MARGIN,
    fooled: Tensor | None = None,
) -> Tensor:
    """Return the gradient (B, classes) of the attack's objective in the logits; 0 where it is NaN.

    `fooled` (B,) bool becomes true for the images that the model misclassifies; their gradient is 0.
    """
    joint = joint_gradient(logits, labels, target="untargeted" if objective == "ce" else "margin", label_scheme="none")
    direction = joint.grad_logits
    if objective == "margin":  # the hinge: a logit that is `margin` past the boundary need not go further
        direction = direction * (joint.objective < margin)[:, None]
    # A row that is not finite is misclassified already, and must not put NaN into its image.
    direction = direction.nan_to_num_(nan=0.0)
    if fooled is not None:
        fooled.logical_or_(predictions(logits) != labels)
        direction.masked_fill_(fooled[:, None], 0.0)
    return direction
