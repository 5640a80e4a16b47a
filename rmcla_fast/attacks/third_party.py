"""What other libraries do: MI-FGSM, Carlini-Wagner l2 and DeepFool l2 by foolbox, and AutoAttack's checks of a model.

The libraries have traps, which this module avoids. If foolbox's Carlini-Wagner attack finds nothing, it returns a black
image, and its success flag then depends on the model's prediction for that image. AutoAttack's checks log, and unset
the trace function. `untouched` restores the model, the random states and the trace function.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import CheckedModel
from rmcla_fast.errors import UserError

INSTALL = "pip install 'rmcla-fast[eval]'"
CHECKS = ("pyautoattack", "autoattack")  # packages with AutoAttack's checks: PyPI's, and that of the authors


@dataclass(frozen=True)
class Task:
    """The input of an attack: a batch that the model classifies correctly, and a function for the progress."""

    model: CheckedModel
    images: Tensor  # (B, C, H, W), as `as_images` returns them
    labels: Tensor  # (B,) int64
    epsilon: float  # the l-infinity radius, which the l2 attacks do not use
    seed: int
    report: Callable[[float], None]  # called with the fraction done


@dataclass(frozen=True)
class Verdict:
    """The result of an attack on images that the model classifies correctly."""

    right: Tensor  # (B,) bool: the attack failed
    distortion: Tensor | None = None  # (B,) l2 norm of the perturbation, infinite where the attack failed
    library: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExternalAttack:
    """An attack of foolbox, which must be installed."""

    title: str
    run: Callable[[Task], Verdict]


def require(names: Iterable[str]) -> None:
    """Raise UserError if one of the attacks is foolbox's and foolbox is not installed."""
    for name in names:
        if name in EXTERNAL and importlib.util.find_spec("foolbox") is None:
            raise UserError(f"attack {name!r} needs foolbox, which is not installed; install it with: {INSTALL}")


def _foolbox_version() -> str:
    return f"foolbox {getattr(importlib.import_module('foolbox'), '__version__', '')}".strip()


def _foolbox(make: Callable[[Any], Any], task: Task, *, expected_calls: int, epsilon: float | None = None) -> Tensor:
    """Return the images that a foolbox attack found, clipped to [0, 1].

    Args:
        make: makes the attack from the module `foolbox.attacks`.
        task: what to attack.
        expected_calls: how often the attack calls the model. foolbox reports no progress, so the calls are counted.
        epsilon: the radius; None lets the attack look for the nearest images that fool the model.
    """
    foolbox = importlib.import_module("foolbox")
    torch.manual_seed(task.seed)
    asked = _Float32(task.model, lambda calls: task.report(min(1.0, calls / expected_calls)))
    wrapped = foolbox.models.PyTorchModel(asked, bounds=(0, 1), device=task.images.device)
    attack = make(foolbox.attacks)
    criterion = foolbox.criteria.Misclassification(task.labels)
    radius = {} if epsilon is None else {"epsilon": epsilon}
    found: Tensor = attack.run(wrapped, task.images.float(), criterion, **radius)
    return found.detach().to(task.images.dtype).clamp_(0, 1)


def _mi(task: Task) -> Verdict:
    """Run MI-FGSM (Dong et al., CVPR 2018): 10 steps of epsilon/5 with decay 1, from the image itself."""
    found = _foolbox(
        lambda attacks: attacks.LinfMomentumIterativeFastGradientMethod(
            momentum=1.0, rel_stepsize=0.2, steps=10, random_start=False
        ),
        task,
        expected_calls=10,
        epsilon=task.epsilon,
    )
    return Verdict(task.model.predict(found) == task.labels, library=_foolbox_version())


def _l2(make: Callable[[Any], Any], task: Task, *, expected_calls: int) -> Verdict:
    """Run an l2 attack of foolbox."""
    found = _foolbox(make, task, expected_calls=expected_calls)
    nothing = (found == 0).flatten(1).all(1)  # what Carlini-Wagner returns if it finds nothing
    found = torch.where(nothing[:, None, None, None], task.images, found)
    right = task.model.predict(found) == task.labels
    distortion = (found - task.images).flatten(1).norm(dim=1).masked_fill(right, float("inf"))
    return Verdict(right, distortion, _foolbox_version())


def _carlini_wagner(steps: int, step_size: float) -> Callable[[Task], Verdict]:
    """Return Carlini and Wagner's l2 attack with the fixed constant 100, as the paper runs it ("Ori-CW")."""

    def run(task: Task) -> Verdict:
        return _l2(
            lambda attacks: attacks.L2CarliniWagnerAttack(
                binary_search_steps=1,
                steps=steps,
                stepsize=step_size,
                confidence=0,
                initial_const=100,
                abort_early=False,
            ),
            task,
            expected_calls=steps,
        )

    return run


def _deepfool(task: Task) -> Verdict:
    """Run DeepFool l2 (Moosavi-Dezfooli et al., CVPR 2016): 50 steps, the 10 most likely classes, overshoot 0.02."""
    root = logging.getLogger()
    silenced = _Silence()
    root.addFilter(silenced)  # DeepFool logs to the root logger, whose first message would also configure it
    had_handlers = list(root.handlers)
    try:
        classes = min(10, task.model.num_classes or 10)
        # It takes 50 steps at most, and ends when every image is fooled.
        return _l2(lambda attacks: attacks.L2DeepFoolAttack(), task, expected_calls=50 * classes)
    finally:
        root.removeFilter(silenced)
        for handler in set(root.handlers) - set(had_handlers):
            root.removeHandler(handler)


class _Float32(nn.Module):
    """The model with float32 logits, since the libraries sort and compare them, and give them to numpy.

    `asked` is called with the number of calls so far.
    """

    def __init__(self, model: CheckedModel, asked: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.model, self.asked, self.calls = model, asked, 0
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        self.calls += 1
        if self.asked is not None:
            self.asked(self.calls)
        return logits.float()


class _Silence(logging.Filter):
    """A filter that lets no message through."""

    def filter(self, record: logging.LogRecord) -> bool:
        return False


class _Notes(logging.Handler):
    """A handler that keeps the warnings of AutoAttack's checks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append("AutoAttack: " + record.getMessage().split(" See ")[0])


def warnings_of_autoattack(model: CheckedModel, images: Tensor, labels: Tensor) -> list[str]:
    """Return what AutoAttack's own checks say of the model on a batch of correctly classified images.

    They look for a randomised defence, for a model that itself differentiates, and for probabilities in place of
    logits. If no package that has them is installed, the one sentence that is returned says so.
    """
    package = next((name for name in CHECKS if importlib.util.find_spec(name) is not None), None)
    if package is None:
        return [
            "AutoAttack's checks for randomised and dynamic defences and for probabilities in place of logits were not "
            f"made, since they need {CHECKS[0]}; install it with: {INSTALL}"
        ]
    module = importlib.import_module(f"{package}.checks")
    asked, logger, handler = _Float32(model), logging.Logger("rmcla_fast.autoattack"), _Notes()
    logger.addHandler(handler)
    images = images.float()
    module.check_randomized(asked, images, labels, bs=len(images), logger=logger)
    module.check_range_output(asked, images, logger=logger)
    module.check_dynamic(asked, images, False, logger=logger)
    return handler.notes


EXTERNAL = {
    "mi": ExternalAttack("MI-FGSM", _mi),
    "cw-l2-a": ExternalAttack("Ori-CW a", _carlini_wagner(steps=100, step_size=0.1)),
    "cw-l2-b": ExternalAttack("Ori-CW b", _carlini_wagner(steps=1000, step_size=0.01)),
    "deepfool-l2": ExternalAttack("DF-l2", _deepfool),
}
"""The attacks by name."""
