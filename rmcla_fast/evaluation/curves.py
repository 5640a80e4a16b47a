"""What a comparison measures besides the attacks: accuracy over epsilon, iterations and time, and loss surfaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.batches import Examples, as_images
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.parts import GRADIENT_ATTACKS
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_step import pgd_direction
from rmcla_fast.ops import soft_cross_entropy
from rmcla_fast.training.metrics import METRICS, read_metrics

Report = Callable[[float], None]
ITERATIONS = 100


def over_epsilon(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    batch_size: int = 256,
    seed: int = 0,
    report: Report | None = None,
    precision: str = "fp32",
) -> list[float]:
    """Return the accuracy in % under CE20 for each epsilon; that for 0 is the clean accuracy."""
    accuracies = []
    with checked(model, precision=precision) as asked:
        attack, examples = PGDAttack(asked), Examples(asked, images, labels)
        for number, epsilon in enumerate(epsilons):
            right = 0
            for batch in examples.batches(batch_size):
                kept = asked.predict(batch.images) == batch.labels
                if epsilon > 0:
                    settings = GRADIENT_ATTACKS["ce20"].settings(epsilon)
                    seeds = batch.seeds(seed)[kept]
                    kept = attack.run(batch.images[kept], batch.labels[kept], settings, seed=seeds).right
                right += int(kept.sum())
            accuracies.append(100 * right / len(labels))
            if report is not None:
                report((number + 1) / len(epsilons))
    return accuracies


def over_iterations(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = ITERATIONS,
    batch_size: int = 256,
    seed: int = 0,
    report: Report | None = None,
    precision: str = "fp32",
) -> list[float]:
    """Return the accuracy in % after 1, 2, ..., `steps` steps of one CE-PGD attack (step epsilon/4, uniform start).

    One attack gives the whole curve, since an image leaves the batch at the first iterate that fools the model.
    """
    settings = replace(GRADIENT_ATTACKS["ce20"].settings(epsilon), steps=steps)
    remaining = [0] * (steps + 1)  # how many images are right after 0, 1, ..., `steps` steps

    def count(taken: int, attacked: int) -> None:
        remaining[taken - 1] += attacked  # the images that are right after `taken - 1` steps take the next one

    with checked(model, precision=precision) as asked:
        attack = PGDAttack(asked)
        for batch in Examples(asked, images, labels).batches(batch_size):
            kept = asked.predict(batch.images) == batch.labels
            chosen, seeds = (batch.images[kept], batch.labels[kept]), batch.seeds(seed)[kept]
            found = attack.run(*chosen, settings, seed=seeds, step_done=count)
            remaining[steps] += int(found.right.sum())
            if report is not None:
                report((int(batch.rows[-1]) + 1) / len(labels))
    return [100 * right / len(labels) for right in remaining[1:]]


def loss_surface(
    model: nn.Module,
    image: Tensor,
    label: int,
    epsilon: float,
    *,
    points: int = 31,
    seed: int = 0,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy on image + a * sign(gradient) + b * random signs, for a and b from -epsilon to epsilon.

    Args:
        model: images to logits.
        image: (C, H, W) float in [0, 1], or uint8.
        label: its true class.
        epsilon: half the side of the square.
        points: how many a side has; odd, so that the image itself is one of them.
        seed: of the random direction.
        precision: as for `evaluate`.

    Returns:
        The coordinates (points,), and the loss (points, points), float32 on the CPU, where a grows from row to row.
        After sound training the loss rises smoothly with a. A loss that is flat or jagged along the gradient and rises
        elsewhere is a sign of gradient masking.
    """
    grid = torch.linspace(-epsilon, epsilon, points, dtype=torch.float32)
    with checked(model, precision=precision) as asked:
        device = asked.device_for(image)
        center = as_images(image[None].to(device))
        true = torch.tensor([label], device=device)
        gradient = asked.image_gradient(center, partial(pgd_direction, labels=true))
        generator = torch.Generator().manual_seed(seed)
        other = (torch.randint(0, 2, center.shape, generator=generator) * 2 - 1).to(center)
        rows = []
        for a in grid.tolist():
            moved = center + a * gradient.sign() + grid.to(center).reshape(-1, 1, 1, 1) * other
            with torch.no_grad():
                logits = asked(moved.clamp(0, 1))
                rows.append(
                    soft_cross_entropy(logits, true.expand(points).contiguous(), reduction="none").float().cpu()
                )
    return grid, torch.stack(rows)


def training_minutes(folder: Path) -> tuple[list[float], list[float]]:
    """Return the minutes since the start and the PGD accuracy in % of each epoch that measured held-out images."""
    rows = [row for row in read_metrics(folder / METRICS) if "pgd" in row and "seconds" in row]
    return [row["seconds"] / 60 for row in rows], [row["pgd"] for row in rows]
