"""Models and images for the tests of attacks and evaluation."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from rmcla_fast.cuda_graph import Work

EPSILON, STEP = 8 / 255, 2 / 255


def small_net(seed: int = 0, classes: int = 10, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(8 * 16, classes),
    ).eval()


def examples(count: int = 64, classes: int = 10, channels: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, 8, 8, generator=generator)
    return images, torch.randint(0, classes, (count,), generator=generator)


def linear_model(classes: int = 5, pixels: int = 12) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    return model, model[1].weight.detach()


class Counting(nn.Module):
    """A model that notes how many images each call asks about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.sizes = model, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.model(images)


class Drifting(nn.Module):
    """A model with everything that an attack could change: batch statistics, dropout, and a counter of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4, 10)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.features(images).mean((2, 3)))


def snapshot(model: nn.Module) -> list[object]:
    """Return copies of weights, buffers, modes, requires-grad flags and gradients."""
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    ]


def assert_same(before: list[object], after: list[object]) -> None:
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def drifting_model() -> nn.Module:
    """Return a `Drifting` model with mixed modes and flags, and with a gradient that is there already."""
    torch.manual_seed(0)
    model = Drifting().train()
    model.features[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(10)
    return model


class Poisoned(nn.Module):
    """A model that answers NaN for images whose first pixel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_net()

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(images[:, 0, 0, :1] > 0.5, float("nan"), self.model(images))


def hide_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no library of the extra [eval] be found."""
    found = importlib.util.find_spec
    hidden = ("foolbox", "pyautoattack", "autoattack")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else found(name, *a))


class Scaled(nn.Module):
    """A layer that multiplies the logits."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


def called_instead(step: Work) -> Work:
    """Run the step, as the warm-up of a capture does, and return it in place of a graph."""
    step()
    return step
