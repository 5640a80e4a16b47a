"""The parts of an evaluation: which parts an attack has, and how each part runs on some images of the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rmcla_fast.attacks.apgd import APGD, MINIMUM_CLASSES
from rmcla_fast.attacks.batches import Batch, Examples
from rmcla_fast.attacks.checked_model import MISCLASSIFIED, CheckedModel, predictions
from rmcla_fast.attacks.fab import FAB
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.attacks.pgd_step import pgd_direction
from rmcla_fast.attacks.slots import Search
from rmcla_fast.attacks.square import Square
from rmcla_fast.attacks.third_party import EXTERNAL, Task
from rmcla_fast.attacks.verdicts import Finding, Part

Report = Callable[[float], None]


@dataclass(frozen=True)
class GradientAttack:
    """A PGD attack with a name, at any epsilon. CE10 and CE50 are the FastAT Benchmark's, the others the paper's."""

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
    "ce10": GradientAttack("CE10", 10, 0.25),
    "ce20": GradientAttack("CE20", 20, 0.25),
    "ce50": GradientAttack("CE50", 50, 0.25),
    "ce100": GradientAttack("CE100", 100, 0.25),
    "ce1000": GradientAttack("CE1000", 1000, 0.25),
    "cw100": GradientAttack("CW100", 100, 0.25, objective="margin"),
}
SEVERAL = {
    "apgd-ce": ("apgd-ce",),
    "apgd-t": ("apgd-t",),
    "apgd": ("apgd-ce", "apgd-t"),
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
}
"""The attacks that are made of parts, and their parts in order."""

PART_TITLES = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}
PASSES = {"clean": 1, **{name: 2 * attack.steps for name, attack in GRADIENT_ATTACKS.items()}} | {
    "mi": 20,
    "cw-l2-a": 200,
    "cw-l2-b": 2000,
    "deepfool-l2": 1000,
    "apgd-ce": 200,
    "apgd-t": 1800,
    "fab-t": 2700,
    "square": 5000,
}
"""The cost of a part for an image that withstands it, in forward passes. A backward pass to the image counts as one."""


def parts_of(attack: str, precision: str, restarts: int, classes: int) -> list[Part]:
    """Return the parts of an attack; each part runs on the images that withstood those before it.

    A 16-bit search comes before the same search in float32. It fools nobody by rounding, since its adversarial images
    count only if they fool the unchanged model, and an image that it leaves is attacked again.

    Raises:
        ValueError: a part cannot run with so few classes, and the attack has no other.
    """
    if attack == "clean":
        return [Part("clean", precision)]
    if attack not in SEVERAL:
        random = attack in GRADIENT_ATTACKS and GRADIENT_ATTACKS[attack].random_start
        return [Part("clean", precision), Part(attack, precision, restarts if random else 1)]
    parts = [Part("clean")]
    for name in SEVERAL[attack]:
        if name == "apgd-t" and classes < MINIMUM_CLASSES:
            continue
        if precision != "fp32" and name != "fab-t":
            parts.append(Part(name, precision))
        parts.append(Part(name))
    if len(parts) == 1:
        raise ValueError(
            f"attack 'apgd-t' needs at least {MINIMUM_CLASSES} classes, for its targeted loss; the model has {classes}"
        )
    return parts


class Runner:
    """Runs parts on one model and one data set."""

    def __init__(
        self, models: dict[str, CheckedModel], examples: Examples, epsilon: float, batch_size: int, seed: int
    ) -> None:
        """`models` has the model in float32, and in the precision of the search, by the names of the precisions."""
        self.models, self.examples, self.epsilon = models, examples, epsilon
        self.batch_size, self.seed = batch_size, seed
        self._pgd = {precision: PGDAttack(model) for precision, model in models.items()}

    def run(self, part: Part, rows: Tensor, report: Report) -> Iterator[Finding]:
        """Yield what the part finds out about the rows, which are classified correctly without an attack."""
        if part.attack in PART_TITLES:
            yield from self._search(part, rows, report)
            return
        done = 0
        for batch in self.examples.batches(self.batch_size, rows):

            def report_part(fraction: float, before: int = done, size: int = len(batch.rows)) -> None:
                report((before + fraction * size) / len(rows))

            yield self._attack(part, batch, report_part)
            done += len(batch.rows)
            report_part(1.0)

    def _search(self, part: Part, rows: Tensor, report: Report) -> Iterator[Finding]:
        model, exact = self.models[part.precision], self.models["fp32"]
        search: Search
        if part.attack == "square":
            search = Square(model, self.examples, self.seed, epsilon=self.epsilon)
        elif part.attack == "fab-t":
            search = FAB(model, self.examples, self.seed, epsilon=self.epsilon)
        else:
            search = APGD(model, self.examples, self.seed, epsilon=self.epsilon, targeted=part.attack == "apgd-t")
        for found in search.run(rows, self.batch_size, report):
            right = found.right
            if model is not exact and not bool(right.all()):
                labels = self.examples.labels[found.rows.to(self.examples.labels.device)].to(found.images.device)
                right = right | (exact.predict(found.images) == labels).cpu()
            yield Finding(found.rows, right, odd=found.no_gradient)

    def _attack(self, part: Part, batch: Batch, report: Report) -> Finding:
        model, (rows, images, labels) = self.models[part.precision], batch
        if part.attack == "clean":
            return self._clean(model, batch)
        if part.attack in GRADIENT_ATTACKS:
            settings = GRADIENT_ATTACKS[part.attack].settings(self.epsilon, part.restarts)
            work = settings.restarts * settings.steps
            found = self._pgd[part.precision].run(
                images,
                labels,
                settings,
                seed=batch.seeds(self.seed),
                step_done=lambda taken, attacked: report(taken / work),
            )
            return Finding(rows, found.right.cpu(), odd=found.unmoved.cpu())
        verdict = EXTERNAL[part.attack].run(Task(model, images, labels, self.epsilon, self.seed, report))
        distortion = None if verdict.distortion is None else verdict.distortion.cpu()
        # The library does not say where it had no gradient to go by, so it is looked at here.
        gradient = model.image_gradient(images, partial(pgd_direction, labels=labels))
        stuck = verdict.right & (gradient == 0).flatten(1).all(1)
        return Finding(
            rows, verdict.right.cpu(), distortion, odd=stuck.cpu(), library=verdict.library, notes=verdict.notes
        )

    def _clean(self, model: CheckedModel, batch: Batch) -> Finding:
        with torch.no_grad():
            logits = model(batch.images)
        answers = predictions(logits)
        return Finding(batch.rows, (answers == batch.labels).cpu(), odd=(answers == MISCLASSIFIED).cpu())
