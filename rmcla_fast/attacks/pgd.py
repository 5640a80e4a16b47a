"""Projected gradient descent on the fused operators: FGSM, CE-PGD and CW-PGD are settings of it.

`pgd` is the attack itself on one batch; `fool` is the same ascent where only the verdict counts, so that images leave
the batch as soon as they are misclassified.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import CheckedModel, as_images, untouched
from rmcla_fast.attacks.pgd_step import Ascents, Rule
from rmcla_fast.ops import checks, random_start

OBJECTIVES = ("ce", "margin")
StepDone = Callable[[int, int], None]


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    objective: str = "ce",
    margin: float = 50.0,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    drop_fooled: bool = False,
) -> Tensor:
    """l-infinity projected gradient descent (Madry et al., ICLR 2018) away from the true class.

    One restart is `steps` times x <- clip(clip(x + step_size * sign(g), image - epsilon, image + epsilon), 0, 1), with
    g the gradient of +CE(z, label) ("ce") or of -max(z_c - max_k z_k + margin, 0) ("margin", Carlini and Wagner 2017),
    from a uniform start in the ball, clipped to [0, 1], or from the image itself. Equal to the other libraries' PGD.

    On a GPU many steps are replayed from one CUDA graph: what a model does in Python besides (a counter, a draw from
    `random`) then happens only while it is captured. A model whose Python waits for the GPU runs uncaptured, with one
    warning.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes); asked in evaluation mode, and left as it was.
        images: (B, C, H, W) float in [0, 1], or uint8 (value / 255).
        labels: (B,) int64, the true classes.
        epsilon: the radius in [0, 1] pixels (8/255), in (0, 1].
        step_size: positive, in the same unit.
        steps: gradient steps a restart, at least 1.
        objective: "ce" or "margin".
        margin: how far past the boundary the margin objective pushes, in logits.
        restarts: independent starts, at least 1; those after the first run only on images that are not fooled yet, and
            are all alike unless `random_start`.
        random_start: uniform noise in the ball at the start.
        seed: of the noise, drawn as `rmcla_fast.random_start` does: the same on every device.
        drop_fooled: an image stays as it is from the first iterate, its start included, that the model gets wrong, and
            no longer costs anything. Off, every image takes all the steps of its restart.

    Returns:
        (B, C, H, W) in the images' dtype (float32 for uint8), inside the ball and [0, 1]. A pixel whose gradient is not
        a number stays where it is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, or a model that answers something else.
    """
    check_examples(images, labels)
    check_epsilon(epsilon)
    with untouched(model):
        found, _ = fool(
            CheckedModel(model),
            as_images(images, widen=False),
            labels,
            epsilon=epsilon,
            step_size=step_size,
            steps=steps,
            objective=objective,
            margin=margin,
            restarts=restarts,
            start_at_random=random_start,
            seed=seed,
            drop_fooled=drop_fooled,
        )
    return found


def fool(
    model: CheckedModel,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    objective: str = "ce",
    margin: float = 50.0,
    restarts: int = 1,
    start_at_random: bool = True,
    seed: int = 0,
    drop_fooled: bool = True,
    step_done: StepDone | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`pgd` inside the guard: (adversarial images, (B,) bool which the model still gets right, or None if never asked).

    `step_done(steps taken, images still attacked)` is called for each step, in chunks where a CUDA graph replays them.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}; got {objective!r}")
    for name, value in (("steps", steps), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
    checks.positive("step_size", step_size)
    checks.positive("margin", margin)
    ascents = Ascents(model, Rule(objective, margin, step_size, epsilon, drop_fooled), images)
    result = images.clone()
    remaining = torch.arange(images.shape[0], device=images.device)
    total, taken = steps * restarts, 0
    for restart in range(restarts):
        origin, true = images[remaining], labels[remaining]
        adversarial = origin.clone()
        if start_at_random:  # for the whole batch: what an image's start is does not depend on which others remain
            rng = torch.tensor([seed, restart], device=images.device)
            _start(images, epsilon, rng, remaining, out=adversarial)
        at, end = remaining, steps * (restart + 1)
        ascent = ascents.load(adversarial, origin, true, total - taken) if at.numel() else None
        while ascent is not None and taken < end:
            chunk = min(ascent.chunk, end - taken)
            ascent.advance(chunk)
            adversarial, held = ascent.images[: at.numel()], ascent.held[: at.numel()]
            if step_done is not None:
                each = torch.arange(chunk, device=held.device)
                counts = (held[:, None] > each).sum(0).tolist() if drop_fooled else [at.numel()] * chunk
                for number, count in enumerate(counts, start=1):
                    if count:
                        step_done(taken + number, count)
            taken += chunk
            if drop_fooled:
                right = held == chunk
                if not bool(right.all()):  # the one wait of a chunk
                    wrong = ~right
                    result[at[wrong]] = adversarial[wrong]
                    at, origin, true, adversarial = at[right], origin[right], true[right], adversarial[right]
                    if not at.numel():
                        break
                    if taken < end:
                        ascent = ascents.load(adversarial, origin, true, total - taken)
        result[at] = adversarial
        taken = end
        if not drop_fooled and restart + 1 == restarts:
            return result, None
        remaining = at[model.predict(adversarial) == true] if at.numel() else at
        if not remaining.numel():
            break
    still_right = torch.zeros(images.shape[0], dtype=torch.bool, device=images.device)
    still_right[remaining] = True
    return result, still_right


def _start(images: Tensor, epsilon: float, rng: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """The uniform start of some `rows` of the batch, clipped to [0, 1], written to `out`."""
    if rows.numel() == images.shape[0]:
        return random_start(images, epsilon, rng=rng, clip=True, out=out)
    return out.copy_(random_start(images, epsilon, rng=rng, clip=True)[rows])


def check_epsilon(epsilon: float) -> float:
    """A number in (0, 1], the unit of the images."""
    value = checks.number("epsilon", epsilon)
    if not 0 < value <= 1:
        raise ValueError(f"epsilon must lie in (0, 1], in the unit of [0, 1] images (8/255); got {epsilon}")
    return value


def check_examples(images: Tensor, labels: Tensor) -> None:
    """Images (B, C, H, W), float in [0, 1] or uint8, and labels (B,) int64 that are not negative, on one device."""
    checks.floating("images", images, uint8=True)
    if images.dim() != 4:
        raise ValueError(f"images must have shape (B, C, H, W); got {tuple(images.shape)}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be an int64 tensor; got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64; got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape ({images.shape[0]},), one an image; got {tuple(labels.shape)}")
    checks.same_device("labels", labels, images, "images")
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"labels must be classes, 0 and up; got {int(labels.min())}")
    if images.numel() and images.dtype != torch.uint8:
        lowest, highest = torch.aminmax(images.detach())
        if lowest < 0 or highest > 1:  # NaN passes: the model's answer to it counts as wrong
            raise ValueError(
                f"images must lie in [0, 1]; got values from {float(lowest):g} to {float(highest):g}"
                " (normalisation belongs inside the model)"
            )
