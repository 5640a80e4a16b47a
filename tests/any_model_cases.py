"""What the tests of models of all kinds share: some models, and every door by which a model comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmcla_fast import adversarial_example, recipes
from rmcla_fast.attacks import evaluate, gradient_norm, pgd
from rmcla_fast.training import TrainStep

RECIPE = recipes.get("r-mc-la").replace(epsilon=0.1)
RNG = torch.tensor([0, 0])
Door = Callable[[nn.Module, Tensor, Tensor], Any]


def images_and_labels(count: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 10


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


class After(nn.Module):
    """A model whose answer, or whose input, is changed by a function of (module, tensor)."""

    def __init__(self, answer: Callable[..., Any] | None = None, before: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.model, self.answer, self.before = linear(), answer, before

    def forward(self, images: Tensor) -> Any:
        logits = self.model(images if self.before is None else self.before(self, images))
        return logits if self.answer is None else self.answer(self, logits)


class Observer(nn.Module):
    """Counts its calls in every mode: in a buffer, through `data`, in a new tensor, and in a buffer made late."""

    count: Tensor
    hidden: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()
        for name in ("count", "hidden", "replaced"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        self.hidden.data += 1
        self.replaced = self.replaced + 1
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(()))
        return self.model(images)


def one_update(model: nn.Module, images: Tensor, labels: Tensor, recipe: str = "r-mc-la") -> Tensor:
    chosen = recipes.get(recipe)
    chosen = chosen.replace(epsilon=0.1) if chosen.steps else chosen
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainStep(model, optimizer, chosen)(images, labels)


def example(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return adversarial_example(model, images, labels, RECIPE, rng=RNG).images


def accuracies(attacks: str) -> Door:
    def door(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
        return [one.accuracy for one in evaluate(model, images, labels, attacks=attacks, epsilon=0.1).values()]

    return door


def pgd_images(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return pgd(model, images, labels, epsilon=0.1, step_size=0.05, steps=3)


ATTACKS: dict[str, Door] = {name: accuracies(name) for name in ("fgsm", "ce20", "cw100", "apgd-ce", "apgd-t")}
DOORS: dict[str, Door] = {
    "standard": lambda *given: one_update(*given, recipe="standard"),
    "r-mc-la": one_update,
    "trades": lambda *given: one_update(*given, recipe="trades"),
    "adversarial_example": example,
    "clean": accuracies("clean"),
    **ATTACKS,
    "pgd": pgd_images,
    "gradient_norm": lambda *given: gradient_norm(*given).squared,
}
needs_gradients = pytest.mark.parametrize("door", [name for name in DOORS if name not in ("standard", "clean")])
every_door = pytest.mark.parametrize("door", DOORS)
