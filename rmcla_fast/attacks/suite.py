"""The named attacks of the evaluation, with the settings of the paper, and `evaluate`, which runs them on any model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import MISCLASSIFIED, CheckedModel, as_images, untouched
from rmcla_fast.attacks.pgd import check_epsilon, check_examples, fool
from rmcla_fast.attacks.third_party import EXTERNAL, Verdict, require
from rmcla_fast.ops import checks

BATCH_SIZE = 256


@dataclass(frozen=True)
class GradientAttack:
    """A setting of `pgd`: the step in units of epsilon, and whether it starts at random."""

    title: str
    steps: int
    step_ratio: float
    objective: str = "ce"
    random_start: bool = True


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
    """What one attack left of a model: `accuracy` in %, over `images` images, in `seconds`.

    `distortion_*` are of the successful l2 attacks, in the unit of [0, 1] images; the accuracy of such an attack counts
    success at any distortion, as the paper does, and `accuracy_in_budget` only success within `l2_budget`.
    """

    accuracy: float
    images: int
    seconds: float
    restarts: int | None = None
    nonfinite: int = 0
    distortion_median: float | None = None
    distortion_mean: float | None = None
    l2_budget: float | None = None
    accuracy_in_budget: float | None = None
    library: str | None = None
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    right: Tensor | None = field(default=None, repr=False, compare=False)  # (N,) bool on the CPU, image by image

    def as_json(self) -> dict[str, Any]:
        """The fields that say something, as JSON values."""
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
    """The accuracy that each attack leaves, on any model, which comes back exactly as it went in.

    Step sizes, starts and libraries are the paper's (Wang and Zhang, ICCV 2019, section "Attacks"): FGSM without a
    random start; CE20, CE100, CE1000 and CW100 (margin 50) with step epsilon/4 from a uniform start; MI-FGSM, the two
    settings of Carlini and Wagner's l2 attack and DeepFool by foolbox; and standard AutoAttack. An image counts as
    fooled from the first iterate of CE or CW that the model gets wrong, and then costs nothing more.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes), in any floating-point type or under autocast.
        images: (N, C, H, W) float in [0, 1], or uint8 (value / 255); moved to the model's device batch by batch.
        labels: (N,) int64.
        attacks: names of ATTACKS, or one string with commas between them.
        epsilon: the l-infinity radius in [0, 1] pixels (8/255), in (0, 1].
        restarts: of the attacks that start at random (CE and CW); each runs on the survivors of those before it.
        batch_size: images attacked together.
        seed: of every random start, in [0, 2^32).
        l2_budget: for `accuracy_in_budget` of the l2 attacks; None: the l2 norm of a perturbation of epsilon/4 in every
            pixel.
        num_classes: of the data, where that is known: a model that answers another number is refused.
        progress: called with (attack, fraction done) from time to time.
        precision: "fp32" asks the model as it is, in the type of its weights; "bf16" or "fp16" asks it under autocast,
            in the attacks and in the verdicts. That is the accuracy of the 16-bit network; the one to publish is that
            of float32 weights with "fp32". Images, balls and losses are float32 (float64 for such images) in any case.

    Returns:
        For each attack, in the order of ATTACKS, its AttackResult. A model that answers NaN or infinity is counted as
        wrong on that image, and `nonfinite` says how often that happened on the clean images.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, an attack that does not exist, a model
            that answers something else than (B, classes), a 16-bit precision with weights in another type than it and
            float32.
        rmcla_fast.errors.UserError: the library of an attack is not installed, or the GPU has no bf16.
    """
    names = attack_names(attacks)
    check_epsilon(epsilon)
    check_examples(images, labels)
    if not len(labels):
        raise ValueError("images must hold at least one image; got none")
    for name, value in (("restarts", restarts), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
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
    with untouched(model):
        session = _Session(CheckedModel(model, num_classes, precision), images, labels, epsilon, batch_size, seed)
        session.ask_clean(lambda fraction: report("clean", fraction))
        for name in names:
            results[name] = session.run(name, restarts, l2_budget, report)
            report(name, 1.0)
    return results


def attack_names(attacks: str | Iterable[str]) -> list[str]:
    """The wanted names in the order of ATTACKS; ValueError, with the list, for one that does not exist."""
    parts = attacks.split(",") if isinstance(attacks, str) else attacks or ()
    wanted = [name for name in (str(part).strip().lower() for part in parts) if name]
    for name in wanted:
        if name not in TITLES:
            raise ValueError(f"attacks must be among {', '.join(ATTACKS)}; got {name!r}")
    if not wanted:
        raise ValueError(f"attacks must name at least one of {', '.join(ATTACKS)}; got none")
    return [name for name in ATTACKS if name in wanted]


class _Session:
    """One model and one data set: the clean answers are asked once; every attack starts from the right ones."""

    def __init__(
        self, model: CheckedModel, images: Tensor, labels: Tensor, epsilon: float, batch_size: int, seed: int
    ) -> None:
        parameter = next(model.parameters(), None)
        self.model, self.images, self.labels = model, images, labels
        self.epsilon, self.batch_size, self.seed = epsilon, batch_size, seed
        self.device = images.device if parameter is None else parameter.device
        self.count = len(labels)
        self.clean_seconds = 0.0
        self.clean = torch.empty(0)

    def batches(self) -> Iterable[tuple[slice, Tensor, Tensor]]:
        for first in range(0, self.count, self.batch_size):
            rows = slice(first, first + self.batch_size)
            yield rows, as_images(self.images[rows].to(self.device)), self.labels[rows].to(self.device)

    def ask_clean(self, report: Callable[[float], None]) -> None:
        started = time.perf_counter()
        answers = []
        for rows, images, labels in self.batches():
            with torch.no_grad():
                logits = self.model(images)
            if int(labels.max()) >= logits.shape[1]:
                raise ValueError(
                    f"labels must lie in [0, {logits.shape[1]}), the classes that the model answers;"
                    f" got {int(labels.max())}"
                )
            self.model.num_classes = logits.shape[1]
            finite = logits.isfinite().all(1)
            answers.append(logits.argmax(1).masked_fill(~finite, MISCLASSIFIED).cpu())
            report(min(1.0, rows.stop / self.count))
        self.clean = torch.cat(answers)
        self.clean_seconds = time.perf_counter() - started

    def run(self, name: str, restarts: int, l2_budget: float, report: Progress) -> AttackResult:
        nonfinite = int((self.clean == MISCLASSIFIED).sum())
        notes: tuple[str, ...] = ()
        if nonfinite:
            notes = (f"the model answered NaN or infinity on {nonfinite} clean images, which count as misclassified",)
        right = self.clean == self.labels.cpu()
        if name == "clean":
            return self._result(right, self.clean_seconds, nonfinite=nonfinite, notes=notes)
        started = time.perf_counter()
        verdict = self._attack(name, right, restarts, lambda fraction: report(name, fraction))
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
        extras["precision"] = self.model.precision
        return AttackResult(accuracy=accuracy, images=self.count, seconds=seconds, right=right, **extras)

    def _attack(self, name: str, right: Tensor, restarts: int, report: Callable[[float], None]) -> Verdict:
        """The verdict on all images; those that are wrong already are not attacked."""
        remaining = torch.zeros(self.count, dtype=torch.bool)
        distortion = torch.full((self.count,), float("inf"))
        notes: dict[str, None] = {}
        library, has_distortion = None, False
        attacked, total = 0, max(1, int(right.sum()))
        for number, (rows, images, labels) in enumerate(self.batches()):
            chosen = right[rows].to(self.device)
            size = int(chosen.sum())
            if not size:
                continue

            def part(fraction: float, before: int = attacked, size: int = size) -> None:
                report((before + fraction * size) / total)

            seed = self.seed + (number << 32)  # the upper half of a Philox seed tells the batches apart
            if name in GRADIENT_ATTACKS:
                verdict = self._gradient_attack(name, images[chosen], labels[chosen], restarts, seed, part)
            else:
                verdict = EXTERNAL[name].run(
                    self.model, images[chosen], labels[chosen], self.epsilon, self.seed + number, part
                )
            where = torch.arange(self.count)[rows][right[rows]]
            remaining[where] = verdict.right.cpu()
            if verdict.distortion is not None:
                has_distortion = True
                distortion[where] = verdict.distortion.cpu().to(distortion.dtype)
            library = verdict.library
            notes.update(dict.fromkeys(verdict.notes))
            attacked += size
            part(1.0, attacked - size)
        return Verdict(remaining, distortion if has_distortion else None, library, tuple(notes))

    def _gradient_attack(
        self, name: str, images: Tensor, labels: Tensor, restarts: int, seed: int, report: Callable[[float], None]
    ) -> Verdict:
        attack = GRADIENT_ATTACKS[name]
        restarts = restarts if attack.random_start else 1
        work = restarts * attack.steps
        _, right = fool(
            self.model,
            images,
            labels,
            epsilon=self.epsilon,
            step_size=attack.step_ratio * self.epsilon,
            steps=attack.steps,
            objective=attack.objective,
            restarts=restarts,
            start_at_random=attack.random_start,
            seed=seed,
            step_done=lambda taken, attacked: report(taken / work),
        )
        assert right is not None  # where fooled images are dropped, the survivors are always asked
        return Verdict(right)
