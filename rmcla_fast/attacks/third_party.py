"""Attacks of other libraries: MI-FGSM, Carlini-Wagner l2 and DeepFool l2 by foolbox, and FAB-T by AutoAttack's package.

The libraries have traps, which this module avoids. If foolbox's Carlini-Wagner attack finds nothing, it returns a black
image, and its success flag then depends on the model's prediction for that image. AutoAttack logs, seeds the global
generators, and unsets the trace function. `checked` restores the model and the random states.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import CheckedModel
from rmcla_fast.errors import UserError

INSTALL = "pip install 'rmcla-fast[eval]'"


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
    """An attack of another library. One of its packages must be installed."""

    title: str
    packages: tuple[str, ...]
    run: Callable[[Task], Verdict]


def require(name: str) -> str:
    """Return the first of the attack's packages that is installed; raise UserError if none is."""
    attack = EXTERNAL["fab-t" if name == "autoattack" else name]
    for package in attack.packages:
        if importlib.util.find_spec(package) is not None:
            return package
    raise UserError(
        f"attack {name!r} needs {' or '.join(attack.packages)}, which is not installed; install it with: {INSTALL}"
    )


def _version(package: str) -> str:
    module = importlib.import_module(package)
    return f"{package} {getattr(module, '__version__', '')}".strip()


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
    return Verdict(task.model.predict(found) == task.labels, library=_version("foolbox"))


def _l2(make: Callable[[Any], Any], task: Task, *, expected_calls: int) -> Verdict:
    """Run an l2 attack of foolbox."""
    found = _foolbox(make, task, expected_calls=expected_calls)
    nothing = (found == 0).flatten(1).all(1)  # what Carlini-Wagner returns if it finds nothing
    found = torch.where(nothing[:, None, None, None], task.images, found)
    right = task.model.predict(found) == task.labels
    distortion = (found - task.images).flatten(1).norm(dim=1).masked_fill(right, float("inf"))
    return Verdict(right, distortion, _version("foolbox"))


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
        self.train(model.training)

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

    They look for a randomised defence, a model that itself differentiates, and probabilities in place of logits.
    """
    module = importlib.import_module(f"{require('autoattack')}.checks")
    asked, logger, handler = _Float32(model), logging.Logger("rmcla_fast.autoattack"), _Notes()
    logger.addHandler(handler)
    images = images.float()
    module.check_randomized(asked, images, labels, bs=len(images), logger=logger)
    module.check_range_output(asked, images, logger=logger)
    module.check_dynamic(asked, images, False, logger=logger)
    return handler.notes


def _fab(task: Task) -> Verdict:
    """Run AutoAttack's targeted FAB (Croce and Hein, ICML 2020): 100 iterations towards each of up to 9 classes."""
    package = require("autoattack")
    classes = task.model.num_classes
    assert classes is not None  # `evaluate` knows it from the clean images
    with torch.enable_grad():
        answered = task.model(task.images.detach().requires_grad_())
    if not answered.requires_grad:  # the library would fail on it
        note = "FAB-T could not run, since autograd finds no way from the logits back to the images"
        return Verdict(torch.ones_like(task.labels, dtype=torch.bool), notes=(note,))
    targets, iterations = min(9, classes - 1), 100
    # An iteration asks twice, and each target begins with two more questions.
    asked = _Float32(task.model, lambda calls: task.report(min(1.0, calls / (targets * (2 * iterations + 4)))))
    attack = importlib.import_module(f"{package}.fab_pt").FABAttack_PT(
        asked, norm="Linf", n_restarts=1, n_iter=iterations, eps=task.epsilon, seed=task.seed, device=task.images.device
    )
    attack.targeted, attack.n_target_classes = True, targets
    found = attack.perturb(task.images.float(), task.labels)
    return Verdict(task.model.predict(found.detach()) == task.labels, library=_version(package))


EXTERNAL = {
    "mi": ExternalAttack("MI-FGSM", ("foolbox",), _mi),
    "cw-l2-a": ExternalAttack("Ori-CW a", ("foolbox",), _carlini_wagner(steps=100, step_size=0.1)),
    "cw-l2-b": ExternalAttack("Ori-CW b", ("foolbox",), _carlini_wagner(steps=1000, step_size=0.01)),
    "deepfool-l2": ExternalAttack("DF-l2", ("foolbox",), _deepfool),
    "fab-t": ExternalAttack("FAB-T", ("pyautoattack", "autoattack"), _fab),
}
"""The attacks by name. FAB-T runs only as a part of AutoAttack."""
