"""Attacks of other libraries: MI-FGSM, Carlini-Wagner l2 and DeepFool l2 by foolbox, and AutoAttack by its own package.

The libraries have traps, which this module avoids. If foolbox's Carlini-Wagner attack finds nothing, it returns a black
image, and its success flag then depends on the model's prediction for that image. AutoAttack logs, seeds the global
generators, unsets the trace function, and needs 4 classes. `checked` restores the model and the random states.
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
    attack = EXTERNAL[name]
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


class _AutoAttackLog(logging.Handler):
    """A handler that turns AutoAttack's log into progress, and its warnings into notes."""

    def __init__(self, attacks: list[str], report: Callable[[float], None]) -> None:
        super().__init__(logging.DEBUG)
        self.attacks, self.report, self.notes = attacks, report, dict[str, None]()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.notes["AutoAttack: " + message.split(" See ")[0]] = None
        elif message.startswith("running "):
            name = message.removeprefix("running ").strip()
            if name in self.attacks:
                self.report(self.attacks.index(name) / len(self.attacks))


def _autoattack(task: Task) -> Verdict:
    """Run standard l-infinity AutoAttack (Croce and Hein, ICML 2020), or those of its attacks that can run.

    With fewer than 4 classes, targeted APGD cannot run.
    """
    package = require("autoattack")
    classes = task.model.num_classes
    assert classes is not None  # `evaluate` knows it from the clean images
    notes = []
    choice: dict[str, Any] = {"version": "standard"}
    attacks = ["apgd-ce", "apgd-t", "fab-t", "square"]
    if classes < 4:
        attacks = ["apgd-ce", "fab-t", "square"]
        choice = {"version": "custom", "attacks" if package == "pyautoattack" else "attacks_to_run": attacks}
        notes.append(
            f"AutoAttack's targeted APGD needs 4 classes and the model has {classes}: APGD-CE, FAB-T and Square ran"
        )
    module = importlib.import_module(package)
    logger = logging.getLogger("auto-attack")
    log = _AutoAttackLog(attacks, task.report)
    before = (logger.level, logger.propagate)
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    images = task.images.float()  # AutoAttack computes in float32 throughout
    if package == "autoattack":  # the reference package prints instead of logging
        choice["verbose"] = False
    try:
        attack = module.AutoAttack(
            _Float32(task.model), norm="Linf", eps=task.epsilon, seed=task.seed, device=images.device, **choice
        )
        targets = min(9, classes - 1)
        attack.apgd_targeted.n_target_classes = targets
        attack.fab.n_target_classes = targets
        if classes < 4:  # the custom version does not make these settings of the standard one
            attack.apgd.n_restarts = attack.fab.n_restarts = 1
        if package == "pyautoattack":
            _, answers = attack.run_standard_evaluation(images, task.labels, batch_size=len(images))
        else:
            _, answers = attack.run_standard_evaluation(images, task.labels, bs=len(images), return_labels=True)
    finally:
        logger.removeHandler(log)
        logger.setLevel(before[0])
        logger.propagate = before[1]
    return Verdict(answers == task.labels, library=_version(package), notes=(*notes, *log.notes))


EXTERNAL = {
    "mi": ExternalAttack("MI-FGSM", ("foolbox",), _mi),
    "cw-l2-a": ExternalAttack("Ori-CW a", ("foolbox",), _carlini_wagner(steps=100, step_size=0.1)),
    "cw-l2-b": ExternalAttack("Ori-CW b", ("foolbox",), _carlini_wagner(steps=1000, step_size=0.01)),
    "deepfool-l2": ExternalAttack("DF-l2", ("foolbox",), _deepfool),
    "autoattack": ExternalAttack("AutoAttack", ("pyautoattack", "autoattack"), _autoattack),
}
