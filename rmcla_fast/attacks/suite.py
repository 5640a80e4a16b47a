"""The named attacks of an evaluation, with the settings of the paper, and `evaluate`, which runs them on any model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.batches import batches
from rmcla_fast.attacks.checked_model import MISCLASSIFIED, CheckedModel, checked, predictions
from rmcla_fast.attacks.checks import check_classes, check_count, check_epsilon, check_examples
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.attacks.third_party import EXTERNAL, Task, Verdict, require
from rmcla_fast.ops import checks
from rmcla_fast.options import AT_LEAST_1, NOT_NEGATIVE, PERCENT, fact

BATCH_SIZE = 256


@dataclass(frozen=True)
class GradientAttack:
    """One of the PGD attacks that the paper names, at any epsilon."""

    title: str
    steps: int
    step_ratio: float  # the step size divided by epsilon
    objective: str = "ce"
    random_start: bool = True

    def settings(self, epsilon: float, restarts: int = 1) -> PGDSettings:
        """Return the settings at this epsilon; without a random start there are no restarts."""
        return PGDSettings(
            epsilon,
            self.step_ratio * epsilon,
            self.steps,
            self.objective,
            restarts=restarts if self.random_start else 1,
            random_start=self.random_start,
            drop_fooled=True,
        )


GRADIENT_ATTACKS = {
    "fgsm": GradientAttack("FGSM", 1, 1.0, random_start=False),
    "ce20": GradientAttack("CE20", 20, 0.25),
    "ce100": GradientAttack("CE100", 100, 0.25),
    "ce1000": GradientAttack("CE1000", 1000, 0.25),
    "cw100": GradientAttack("CW100", 100, 0.25, objective="margin"),
}
TITLES = {
    "clean": "clean",
    **{name: attack.title for name, attack in GRADIENT_ATTACKS.items()},
    **{name: attack.title for name, attack in EXTERNAL.items()},
}
ATTACKS = tuple(TITLES)
"""Every name that `evaluate` takes, in the order in which tables show them."""

Progress = Callable[[str, float], None]
"""Called as (attack, fraction done in [0, 1])."""


@dataclass(frozen=True)
class AttackResult:
    """The `accuracy` in % of a model under one attack, over `images` images, measured in `seconds`.

    An l2 attack has more fields: `accuracy` counts its successes at any distortion, as the paper does, and
    `accuracy_in_budget` only those within `l2_budget`. `distortion_median` and `distortion_mean` are of its successes,
    in the unit of [0, 1] images.
    """

    accuracy: float = fact(PERCENT)
    images: int = fact(AT_LEAST_1)
    seconds: float = fact(NOT_NEGATIVE)
    restarts: int | None = fact(AT_LEAST_1, None)
    nonfinite: int = fact(NOT_NEGATIVE, 0)
    distortion_median: float | None = fact(NOT_NEGATIVE, None)
    distortion_mean: float | None = fact(NOT_NEGATIVE, None)
    l2_budget: float | None = fact(NOT_NEGATIVE, None)
    accuracy_in_budget: float | None = fact(PERCENT, None)
    library: str | None = None
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    right: Tensor | None = field(default=None, repr=False, compare=False)  # (N,) bool on the CPU, image by image

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without those that are empty or have their usual value."""
        entries = {name: value for name, value in asdict(self).items() if name != "right"}
        entries["seconds"] = round(self.seconds, 3)
        entries["notes"] = list(self.notes)
        for name, usual in (("nonfinite", 0), ("precision", "fp32")):
            if entries[name] == usual:
                del entries[name]
        return {name: value for name, value in entries.items() if value is not None and value != []}


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attacks: str | Iterable[str],
    epsilon: float,
    restarts: int = 1,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    l2_budget: float | None = None,
    num_classes: int | None = None,
    progress: Progress | None = None,
    precision: str = "fp32",
) -> dict[str, AttackResult]:
    """Return the accuracy of any model under each attack, and leave the model exactly as it was.

    Step sizes, starts and libraries are the paper's (Wang and Zhang, ICCV 2019, section "Attacks"): FGSM without a
    random start; CE20, CE100, CE1000 and CW100 (margin 50) with step epsilon/4 from a uniform start; MI-FGSM, the two
    settings of Carlini and Wagner's l2 attack and DeepFool by foolbox; and standard AutoAttack. Under CE and CW,
    an image counts as misclassified from its first misclassified iterate on, and then costs nothing more.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes), in any floating-point type or under autocast.
        images: (N, C, H, W) float in [0, 1], or uint8 (value / 255); moved to the model's device batch by batch.
        labels: (N,) int64.
        attacks: names of ATTACKS, or one string with commas between them.
        epsilon: the l-infinity radius in [0, 1] pixels (8/255), in (0, 1].
        restarts: the number of restarts of CE and CW, which start at random. Each restart attacks only the images that
            withstood those before it.
        batch_size: how many images are attacked together.
        seed: the seed of every random start, in [0, 2^32).
        l2_budget: the budget for `accuracy_in_budget` of the l2 attacks. None means the l2 norm of a perturbation of
            epsilon/4 in every pixel.
        num_classes: the number of classes of the data, if it is known. A model with another number is refused.
        progress: called with (attack, fraction done) from time to time.
        precision: "fp32" runs the model as it is, in the type of its weights; "bf16" or "fp16" runs it under autocast,
            in the attacks and in the verdicts, which gives the accuracy of the 16-bit network. Publish the accuracy
            with float32 weights and "fp32" instead. Images, balls and losses are float32 in any case (float64 for
            float64 images).

    Returns:
        The AttackResult of each attack, in the order of ATTACKS. An image for which a logit is NaN or
        infinite counts as misclassified, and `nonfinite` is the number of such clean images.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, an attack that does not exist, a model
            that returns something else than (B, classes), or a 16-bit precision with weights that are neither in that
            type nor in float32.
        rmcla_fast.errors.UserError: the library of an attack is not installed, or the GPU has no bf16.
    """
    names = attack_names(attacks)
    check_epsilon(epsilon)
    check_examples(images, labels)
    if not len(labels):
        raise ValueError("images must hold at least one image; got none")
    check_count("restarts", restarts)
    check_count("batch_size", batch_size)
    for name in names:
        if name in EXTERNAL:
            require(name)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise ValueError(f"seed must be a whole number in [0, 2^32); got {seed!r}")
    if l2_budget is not None:
        checks.positive("l2_budget", l2_budget)
    else:
        l2_budget = epsilon / 4 * images[0].numel() ** 0.5

    report = progress or (lambda name, fraction: None)
    results: dict[str, AttackResult] = {}
    with checked(model, num_classes=num_classes, precision=precision) as asked:
        evaluation = _Evaluation(asked, images, labels, epsilon, batch_size, seed)
        evaluation.predict_clean(partial(report, "clean"))
        for name in names:
            results[name] = evaluation.run(name, restarts, l2_budget, partial(report, name))
            report(name, 1.0)
    return results


def attack_names(attacks: str | Iterable[str]) -> list[str]:
    """Return the wanted names in the order of ATTACKS; ValueError, with the list, for one that does not exist."""
    parts = attacks.split(",") if isinstance(attacks, str) else attacks or ()
    wanted = [name for name in (str(part).strip().lower() for part in parts) if name]
    for name in wanted:
        if name not in TITLES:
            raise ValueError(f"attacks must be among {', '.join(ATTACKS)}; got {name!r}")
    if not wanted:
        raise ValueError(f"attacks must name at least one of {', '.join(ATTACKS)}; got none")
    return [name for name in ATTACKS if name in wanted]


class _Evaluation:
    """One model on one data set. Only images that are classified correctly without an attack are attacked."""

    def __init__(
        self, model: CheckedModel, images: Tensor, labels: Tensor, epsilon: float, batch_size: int, seed: int
    ) -> None:
        self.model, self.epsilon, self.seed = model, epsilon, seed
        self.pgd = PGDAttack(model)
        self.labels = labels.cpu()
        self.batches = partial(batches, model, images, labels, batch_size)
        self.clean = torch.empty(0, dtype=torch.int64)  # (N,) the predictions, after `predict_clean`
        self.clean_seconds = 0.0

    def predict_clean(self, report: Callable[[float], None]) -> None:
        started = time.perf_counter()
        answers = []
        for batch in self.batches():
            with torch.no_grad():
                logits = self.model(batch.images)
            check_classes(batch.labels, logits)
            self.model.num_classes = logits.shape[1]
            answers.append(predictions(logits).cpu())
            report(batch.rows.stop / len(self.labels))
        self.clean = torch.cat(answers)
        self.clean_seconds = time.perf_counter() - started

    def run(self, name: str, restarts: int, l2_budget: float, report: Callable[[float], None]) -> AttackResult:
        nonfinite = int((self.clean == MISCLASSIFIED).sum())
        notes: tuple[str, ...] = ()
        if nonfinite:
            notes = (f"the model returned NaN or infinity on {nonfinite} clean images, which count as misclassified",)
        right = self.clean == self.labels
        if name == "clean":
            return self._result(right, self.clean_seconds, nonfinite=nonfinite, notes=notes)
        started = time.perf_counter()
        verdict = self._attack(name, right, restarts, report)
        seconds = time.perf_counter() - started
        extras: dict[str, Any] = {}
        if verdict.distortion is not None:
            found = verdict.distortion[right & ~verdict.right]
            in_budget = verdict.right | (right & (verdict.distortion > l2_budget))
            extras = {"l2_budget": l2_budget, "accuracy_in_budget": 100 * in_budget.double().mean().item()}
            if len(found):
                extras["distortion_median"] = found.double().median().item()
                extras["distortion_mean"] = found.double().mean().item()
        if name in GRADIENT_ATTACKS and GRADIENT_ATTACKS[name].random_start:
            extras["restarts"] = restarts
        return self._result(
            verdict.right, seconds, nonfinite=nonfinite, notes=notes + verdict.notes, library=verdict.library, **extras
        )

    def _result(self, right: Tensor, seconds: float, **extras: Any) -> AttackResult:
        accuracy = 100 * right.double().mean().item()
        return AttackResult(accuracy, len(right), seconds, right=right, precision=self.model.precision, **extras)

    def _attack(self, name: str, right: Tensor, restarts: int, report: Callable[[float], None]) -> Verdict:
        """Return the verdict on all images, after an attack on those that `right` marks as correctly classified."""
        remaining = torch.zeros_like(right)
        distortion = torch.full(right.shape, float("inf"))
        notes: dict[str, None] = {}
        library, has_distortion = None, False
        attacked, total = 0, max(1, int(right.sum()))
        for batch in self.batches():
            chosen = right[batch.rows].to(batch.labels.device)
            size = int(chosen.sum())
            if not size:
                continue

            def report_part(fraction: float, before: int = attacked, size: int = size) -> None:
                report((before + fraction * size) / total)

            images, labels = batch.images[chosen], batch.labels[chosen]
            if name in GRADIENT_ATTACKS:
                task = Task(self.model, images, labels, self.epsilon, batch.seed(self.seed), report_part)
                verdict = self._gradient_attack(GRADIENT_ATTACKS[name].settings(self.epsilon, restarts), task)
            else:  # the libraries take seeds of 32 bits
                task = Task(self.model, images, labels, self.epsilon, self.seed + batch.number, report_part)
                verdict = EXTERNAL[name].run(task)
            where = torch.arange(len(right))[batch.rows][right[batch.rows]]
            remaining[where] = verdict.right.cpu()
            if verdict.distortion is not None:
                has_distortion = True
                distortion[where] = verdict.distortion.cpu().to(distortion.dtype)
            library = verdict.library
            notes.update(dict.fromkeys(verdict.notes))
            report_part(1.0)
            attacked += size
        return Verdict(remaining, distortion if has_distortion else None, library, tuple(notes))

    def _gradient_attack(self, settings: PGDSettings, task: Task) -> Verdict:
        work = settings.restarts * settings.steps
        found = self.pgd.run(
            task.images,
            task.labels,
            settings,
            seed=task.seed,
            step_done=lambda taken, attacked: task.report(taken / work),
        )
        return Verdict(found.right)
