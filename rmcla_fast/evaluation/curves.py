"""What a comparison measures besides the attacks: accuracy over epsilon, iterations and time, and loss surfaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import CheckedModel, as_images, untouched
from rmcla_fast.attacks.pgd import fool
from rmcla_fast.attacks.pgd_step import image_gradient
from rmcla_fast.ops import soft_cross_entropy

Report = Callable[[float], None]
ITERATIONS = 100
CURVE_STEPS = 20


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
    """Accuracy in % under CE20 for each epsilon; 0 is the clean accuracy."""
    accuracies = []
    with untouched(model):
        asked = CheckedModel(model, precision=precision)
        for number, epsilon in enumerate(epsilons):
            right = 0
            for batch, true, batch_seed in _batches(asked, images, labels, batch_size, seed):
                kept = asked.predict(batch) == true
                if epsilon > 0:
                    _, survived = fool(
                        asked,
                        batch[kept],
                        true[kept],
                        epsilon=epsilon,
                        step_size=epsilon / 4,
                        steps=CURVE_STEPS,
                        seed=batch_seed,
                    )
                    assert survived is not None
                    right += int(survived.sum())
                else:
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
    """Accuracy in % after 1, 2, ..., `steps` steps of one CE-PGD attack (step epsilon/4, uniform start).

    One attack gives the whole curve: an image leaves the batch at the first iterate that fools the model.
    """
    remaining = torch.zeros(steps + 1)
    with untouched(model):
        asked = CheckedModel(model, precision=precision)
        done = 0
        for batch, true, batch_seed in _batches(asked, images, labels, batch_size, seed):
            kept = asked.predict(batch) == true

            def step_done(taken: int, attacked: int) -> None:
                remaining[taken - 1] += attacked  # what is right after taken - 1 steps takes the next one

            _, survived = fool(
                asked,
                batch[kept],
                true[kept],
                epsilon=epsilon,
                step_size=epsilon / 4,
                steps=steps,
                seed=batch_seed,
                step_done=step_done,
            )
            assert survived is not None
            remaining[steps] += survived.sum().cpu()
            done += len(true)
            if report is not None:
                report(done / len(labels))
    return (100 * remaining[1:] / len(labels)).tolist()


def _batches(asked: CheckedModel, images: Tensor, labels: Tensor, batch_size: int, seed: int) -> Any:
    parameter = next(asked.parameters(), None)
    device = images.device if parameter is None else parameter.device
    for number, first in enumerate(range(0, len(labels), batch_size)):
        rows = slice(first, first + batch_size)
        yield as_images(images[rows].to(device)), labels[rows].to(device), seed + (number << 32)


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
    """Cross entropy on image + a * sign(gradient) + b * random signs, for a and b from -epsilon to epsilon.

    Args:
        model: images to logits.
        image: (C, H, W) float in [0, 1], or uint8.
        label: its true class.
        epsilon: half the side of the square.
        points: a side; odd, so that the image itself is one of them.
        seed: of the random direction.
        precision: as for `evaluate`.

    Returns:
        The coordinates (points,), and the loss (points, points) with a down the rows, float32 on the CPU. A smooth
        slope upwards in a is what sound training leaves; a loss that is flat or jagged along the gradient and rises
        elsewhere is the sign of a masked gradient.
    """
    grid = torch.linspace(-epsilon, epsilon, points)
    with untouched(model):
        asked = CheckedModel(model, precision=precision)
        parameter = next(asked.parameters(), None)
        device = image.device if parameter is None else parameter.device
        center = as_images(image[None].to(device))
        true = torch.tensor([label], device=device)
        _, gradient = image_gradient(asked, center, true, "ce", 50.0)
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
    """(minutes since the start, PGD accuracy in % on held-out training images) of each epoch that the run watched."""
    from rmcla_fast.training.run_folder import METRICS, read_metrics

    path = folder / METRICS
    rows = [row for row in read_metrics(path) if "pgd" in row and "seconds" in row] if path.exists() else []
    return [row["seconds"] / 60 for row in rows], [row["pgd"] for row in rows]
