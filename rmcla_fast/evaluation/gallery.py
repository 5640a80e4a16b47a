"""A picture of an attack's results: images, magnified perturbations, adversarial images, and both classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import as_images
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.parts import GRADIENT_ATTACKS
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.evaluation import plots
from rmcla_fast.evaluation.report import setting
from rmcla_fast.evaluation.run import Run, evenly_spaced


def draw(run: Run, epsilon: float, path: Path, *, count: int = 8, seed: int = 0, precision: str = "fp32") -> Path:
    """Draw `count` correctly classified test images before and after CE20, one per column, fooled ones first."""
    some = evenly_spaced(len(run.labels))
    images, labels = run.images[some], run.labels[some]
    with checked(run.model, precision=precision) as asked:
        device = asked.device_for(images)
        origin, true = as_images(images.to(device)), labels.to(device)
        kept = asked.predict(origin) == true
        origin, true = origin[kept], true[kept]
        found, right, _ = PGDAttack(asked).run(origin, true, GRADIENT_ATTACKS["ce20"].settings(epsilon), seed=seed)
        order = right.int().argsort(stable=True)[:count]
        answers = asked.predict(found[order])
    origin, found, true = origin[order].cpu(), found[order].cpu(), true[order].cpu()
    figure = plots.new_figure(1.35 * max(count, 4), 4.6)
    axes = figure.subplots(3, max(len(order), 1), squeeze=False)
    for column in range(len(order)):
        rows = (origin[column], (found[column] - origin[column]) / (2 * epsilon) + 0.5, found[column])
        answer = int(answers[column])
        withstood = answer == int(true[column])
        titles = (_class(run, int(true[column])), "", _class(run, answer))
        for row in range(3):
            _show(axes[row][column], rows[row])
            axes[row][column].set_title(
                plots.label(titles[row], 16), fontsize=9, color="black" if row == 0 or withstood else plots.COLOURS[1]
            )
    for row, name in enumerate(("image", f"perturbation\nx {0.5 / epsilon:.3g}, grey is 0", "adversarial")):
        axes[row][0].set_ylabel(name, fontsize=9)
    title = f"{run.name}: {run.description}; CE20, {setting(epsilon, precision)} (orange: fooled)"
    figure.suptitle(plots.label(title, int(10.5 * figure.get_figwidth())), x=0.01, ha="left", fontsize=11)
    return plots.save(figure, path)


def _class(run: Run, label: int) -> str:
    """Return the name of a class."""
    if label < 0:
        return "NaN"
    return run.classes[label] if label < len(run.classes) else str(label)


def _show(axes: Any, image: Tensor) -> None:
    """Show an image (C, H, W) in [0, 1]. Without three channels, only the first one is shown, in grey."""
    pixels = image.clamp(0, 1).float()
    if pixels.shape[0] == 3:
        axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    else:
        axes.imshow(torch.select(pixels, 0, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
