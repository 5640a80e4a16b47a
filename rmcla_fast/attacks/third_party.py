"""Attacks that come from libraries: MI-FGSM, Carlini-Wagner l2 and DeepFool l2 by foolbox; AutoAttack by its own.

Their traps, found in their sources, and closed here: foolbox' Carlini-Wagner answers a black image where it found
nothing, and its own success flag then asks the model about that image; AutoAttack logs, seeds the global generators,
unsets the trace function, and needs 4 classes. The guard around the evaluation gives model and random state back.
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
Report = Callable[[float], None]


@dataclass(frozen=True)
class Verdict:
    """Of an attack on images that the model gets right."""

    right: Tensor  # (B,) bool: the attack failed
    distortion: Tensor | None = None  # (B,) l2 norm of the perturbation, infinite where the attack failed
    library: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExternalAttack:
    """`run(model, images, labels, epsilon, seed, report)` on images that the model gets right."""

    title: str
    packages: tuple[str, ...]
    run: Callable[[CheckedModel, Tensor, Tensor, float, int, Report], Verdict]


def require(name: str) -> str:
    """The package that runs attack `name`: the first of its packages that is installed; UserError where none is."""
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


def _foolbox(
    make: Callable[[Any], Any],
    epsilon: float | None,
    model: CheckedModel,
    images: Tensor,
    labels: Tensor,
    seed: int,
    asked: Callable[[int], None],
) -> Tensor:
    """The images that a foolbox attack found, clipped to [0, 1]; `epsilon` None: as near as it could.

    foolbox tells nothing while it runs: `asked` is called with how often the model has been.
    """
    foolbox = importlib.import_module("foolbox")
    torch.manual_seed(seed)
    wrapped = foolbox.models.PyTorchModel(_Float32(model, asked), bounds=(0, 1), device=images.device)
    attack = make(foolbox.attacks)
    criterion = foolbox.criteria.Misclassification(labels)
    found = attack.run(wrapped, images.float(), criterion, **({} if epsilon is None else {"epsilon": epsilon}))
    return found.detach().to(images.dtype).clamp_(0, 1)


def _mi(model: CheckedModel, images: Tensor, labels: Tensor, epsilon: float, seed: int, report: Report) -> Verdict:
    """MI-FGSM (Dong et al., CVPR 2018): 10 steps of epsilon/5 with decay 1, from the image itself."""
    found = _foolbox(
        lambda attacks: attacks.LinfMomentumIterativeFastGradientMethod(
            momentum=1.0, rel_stepsize=0.2, steps=10, random_start=False
        ),
        epsilon,
        model,
        images,
        labels,
        seed,
        lambda calls: report(min(1.0, calls / 10)),
    )
    return Verdict(model.predict(found) == labels, library=_version("foolbox"))


def _l2(
    make: Callable[[Any], Any],
    model: CheckedModel,
    images: Tensor,
    labels: Tensor,
    seed: int,
    calls: int,
    report: Report,
) -> Verdict:
    """An attack that asks the model about `calls` times."""
    found = _foolbox(make, None, model, images, labels, seed, lambda made: report(min(1.0, made / calls)))
    nothing = (found == 0).flatten(1).all(1)  # Carlini-Wagner's answer where it found nothing
    found = torch.where(nothing[:, None, None, None], images, found)
    right = model.predict(found) == labels
    distortion = (found - images).flatten(1).norm(dim=1).masked_fill(right, float("inf"))
    return Verdict(right, distortion, _version("foolbox"))


def _carlini_wagner(steps: int, step_size: float) -> Callable[..., Verdict]:
    """Carlini and Wagner's l2 attack with a constant of 100 and no search for it, as the paper runs it ("Ori-CW")."""

    def run(model: CheckedModel, images: Tensor, labels: Tensor, epsilon: float, seed: int, report: Report) -> Verdict:
        return _l2(
            lambda attacks: attacks.L2CarliniWagnerAttack(
                binary_search_steps=1,
                steps=steps,
                stepsize=step_size,
                confidence=0,
                initial_const=100,
                abort_early=False,
            ),
            model,
            images,
            labels,
            seed,
            steps,
            report,
        )

    return run


def _deepfool(
    model: CheckedModel, images: Tensor, labels: Tensor, epsilon: float, seed: int, report: Report
) -> Verdict:
    """DeepFool l2 (Moosavi-Dezfooli et al., CVPR 2016): 50 steps, the 10 most likely classes, overshoot 0.02."""
    root = logging.getLogger()
    silenced = _Silence()
    root.addFilter(silenced)  # it logs to the root logger, whose first message would also configure it
    had_handlers = list(root.handlers)
    try:
        classes = min(10, model.num_classes or 10)
        calls = 50 * classes  # at most: it ends when every image is fooled
        return _l2(lambda attacks: attacks.L2DeepFoolAttack(), model, images, labels, seed, calls, report)
    finally:
        root.removeFilter(silenced)
        for handler in set(root.handlers) - set(had_handlers):
            root.removeHandler(handler)


class _Float32(nn.Module):
    """The model with float32 logits: the libraries sort and compare them, and give them to numpy."""

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
    def filter(self, record: logging.LogRecord) -> bool:
        return False


class _AutoAttackLog(logging.Handler):
    """Turns AutoAttack's log into progress and, where it warns, into notes."""

    def __init__(self, attacks: list[str], report: Report) -> None:
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


def _autoattack(
    model: CheckedModel, images: Tensor, labels: Tensor, epsilon: float, seed: int, report: Report
) -> Verdict:
    """AutoAttack (Croce and Hein, ICML 2020), standard, l-infinity; with fewer than 4 classes what of it can run."""
    package = require("autoattack")
    classes = model.num_classes
    assert classes is not None  # the clean images have been asked
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
    log = _AutoAttackLog(attacks, report)
    before = (logger.level, logger.propagate)
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    inputs, asked = images.float(), _Float32(model)  # its arithmetic is float32 throughout
    try:
        if package == "pyautoattack":
            attack = module.AutoAttack(asked, norm="Linf", eps=epsilon, seed=seed, device=images.device, **choice)
        else:  # the reference package prints instead of logging
            attack = module.AutoAttack(
                asked, norm="Linf", eps=epsilon, seed=seed, device=images.device, verbose=False, **choice
            )
        targets = min(9, classes - 1)
        attack.apgd_targeted.n_target_classes = targets
        attack.fab.n_target_classes = targets
        if classes < 4:  # the standard version's settings, which the custom one does not make
            attack.apgd.n_restarts = attack.fab.n_restarts = 1
        if package == "pyautoattack":
            _, answers = attack.run_standard_evaluation(inputs, labels, batch_size=len(labels))
        else:
            _, answers = attack.run_standard_evaluation(inputs, labels, bs=len(labels), return_labels=True)
    finally:
        logger.removeHandler(log)
        logger.setLevel(before[0])
        logger.propagate = before[1]
    return Verdict(answers == labels, library=_version(package), notes=tuple(notes) + tuple(log.notes))


EXTERNAL = {
    "mi": ExternalAttack("MI-FGSM", ("foolbox",), _mi),
    "cw-l2-a": ExternalAttack("Ori-CW a", ("foolbox",), _carlini_wagner(steps=100, step_size=0.1)),
    "cw-l2-b": ExternalAttack("Ori-CW b", ("foolbox",), _carlini_wagner(steps=1000, step_size=0.01)),
    "deepfool-l2": ExternalAttack("DF-l2", ("foolbox",), _deepfool),
    "autoattack": ExternalAttack("AutoAttack", ("pyautoattack", "autoattack"), _autoattack),
}
