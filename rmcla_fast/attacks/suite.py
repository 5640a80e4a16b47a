"""The named attacks of an evaluation, with the settings of the paper, and `evaluate`, which runs them on any model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.apgd import MINIMUM_CLASSES
from rmcla_fast.attacks.attack_result import AttackResult, PartResult
from rmcla_fast.attacks.batches import Examples, as_images
from rmcla_fast.attacks.checked_model import CheckedModel, untouched
from rmcla_fast.attacks.checks import check_classes, check_count, check_epsilon, check_examples
from rmcla_fast.attacks.parts import GRADIENT_ATTACKS, PART_TITLES, PASSES, SEVERAL, Runner, parts_of
from rmcla_fast.attacks.third_party import EXTERNAL, require, warnings_of_autoattack
from rmcla_fast.attacks.verdicts import RIGHT, UNKNOWN, Part, Team, Verdicts
from rmcla_fast.ops import checks
from rmcla_fast.text import did_you_mean

BATCH_SIZE = 256
TITLES = {
    "clean": "clean",
    **{name: attack.title for name, attack in GRADIENT_ATTACKS.items()},
    **{name: attack.title for name, attack in EXTERNAL.items()},
    "apgd-ce": "APGD-CE",
    "apgd-t": "APGD-T",
    "apgd": "APGD",
    "autoattack": "AutoAttack",
}
ATTACKS = tuple(TITLES)
"""Every name that `evaluate` takes, in the order in which tables show them."""
SQUARE_SHARE = 0.002  # of all images; if Square alone fools more, AutoAttack's authors take it for a sign of masking

Progress = Callable[[str, float], None]
"""Called as (attack, fraction done in [0, 1])."""


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
    random start; CE10, CE20, ... and CW100 (margin 50) with step epsilon/4 from a uniform start; MI-FGSM, the two
    settings of Carlini and Wagner's l2 attack and DeepFool by foolbox; and standard AutoAttack, whose notes include
    what the checks of the package pyautoattack say, if it is installed. "apgd-ce" and "apgd-t" are AutoAttack's APGD on
    cross entropy and its targeted APGD, and "apgd" is both. Under these, and under CE and CW, an image counts as
    misclassified from its first misclassified iterate on, and then costs nothing more. What CE, CW, APGD and AutoAttack
    decide about an image depends on its place in the data set, and not on the batch that it comes in, as long as the
    model computes the same logits for it in any batch.

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
            with float32 weights and "fp32" instead. APGD and AutoAttack give the accuracy of the model as it is: their
            16-bit search is confirmed by that model, and the images that it leaves are attacked again. Images, balls
            and losses are float32 in any case (float64 for float64 images).

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
    check_count("restarts", restarts)
    require(names)
    report = progress or (lambda name, fraction: None)
    with untouched(model):
        attacked = ModelUnderAttack(
            model,
            images,
            labels,
            epsilon,
            batch_size=batch_size,
            seed=seed,
            l2_budget=l2_budget,
            num_classes=num_classes,
            precision=precision,
        )
        return {name: attacked.result(name, restarts, partial(report, name)) for name in names}


def attack_names(attacks: str | Iterable[str]) -> list[str]:
    """Return the wanted names in the order of ATTACKS; ValueError, with the list, for one that does not exist."""
    if not isinstance(attacks, (str, Iterable)):
        raise TypeError(f"attacks must be names of {', '.join(ATTACKS)}; got {type(attacks).__name__}")
    parts = attacks.split(",") if isinstance(attacks, str) else attacks
    wanted = [name for name in (str(part).strip().lower() for part in parts) if name]
    for name in wanted:
        if name not in TITLES:
            hint = did_you_mean(name, ATTACKS)
            raise ValueError(f"attacks must be among {', '.join(ATTACKS)}; {hint}got {name!r}")
    if not wanted:
        raise ValueError(f"attacks must name at least one of {', '.join(ATTACKS)}; got none")
    return [name for name in ATTACKS if name in wanted]


class ModelUnderAttack:
    """One model on one data set. An attack runs part by part, and each part asks about images that are still right.

    Args:
        model: the model, which `untouched` keeps as it is.
        images, labels, epsilon, batch_size, seed, l2_budget, num_classes, precision: as for `evaluate`.
        parts: what is known of each part, by its key. What the attacks find out is added here.
        kept: called after every addition.
        team: the processes that share the images; None if this one is alone.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        *,
        batch_size: int = BATCH_SIZE,
        seed: int = 0,
        l2_budget: float | None = None,
        num_classes: int | None = None,
        precision: str = "fp32",
        parts: dict[str, Verdicts] | None = None,
        kept: Callable[[], None] | None = None,
        team: Team | None = None,
    ) -> None:
        check_epsilon(epsilon)
        check_examples(images, labels)
        if not len(labels):
            raise ValueError("images must hold at least one image; got none")
        check_count("batch_size", batch_size)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
            raise ValueError(f"seed must be a whole number in [0, 2^32); got {seed!r}")
        if l2_budget is None:
            l2_budget = epsilon / 4 * images[0].numel() ** 0.5
        self.l2_budget = checks.positive("l2_budget", l2_budget)
        models = {name: CheckedModel(model, num_classes, name) for name in ("fp32", precision)}
        self.precision, self.kept, self.team = precision, kept or (lambda: None), team or Team()
        self.parts = {} if parts is None else parts
        self.model, self.batch_size = models["fp32"], batch_size
        with torch.no_grad():
            self.classes = models[precision](as_images(images[:1].to(self.model.device_for(images)))).shape[1]
        check_classes(labels, self.classes)
        for one in models.values():
            one.num_classes = self.classes
        self.examples = Examples(models[precision], images, labels)
        self.runner = Runner(models, self.examples, epsilon, batch_size, seed)

    def result(self, name: str, restarts: int, report: Callable[[float], None]) -> AttackResult:
        """Return the result of an attack, after those parts of it have run that are not known yet.

        `report` is called with the fraction done, which is 1 in the end.
        """
        parts = parts_of(name, self.precision, restarts, self.classes)
        cost = [PASSES[part.attack] for part in parts]
        right = torch.ones(len(self.examples), dtype=torch.bool)  # no part so far has fooled the model
        found: list[PartResult] = []
        notes: list[str] = []
        for number, part in enumerate(parts):
            offset, share = sum(cost[:number]) / sum(cost), cost[number] / sum(cost)
            verdicts = self._decided(part, right, lambda f, o=offset, s=share: report(o + f * s))  # type: ignore[misc]
            attacked = right
            right = right & (verdicts.right == RIGHT)
            count, left = int(attacked.sum()), int(right.sum())
            found.append(PartResult(part.key, count, count - left, verdicts.seconds))
            notes += [*_notes(part, int((verdicts.odd & attacked).sum())), *verdicts.notes]
        clean, last = self.parts[parts[0].key], self.parts[parts[-1].key]
        extras: dict[str, Any] = {"library": last.library}
        if name in SEVERAL:
            extras["parts"] = tuple(found[1:])
            notes += self._notes_of_several(name, clean.right == RIGHT, found)
        if last.distortion is not None:
            extras |= _distortions(last.distortion, clean.right == RIGHT, right, self.l2_budget)
        if name in GRADIENT_ATTACKS and GRADIENT_ATTACKS[name].random_start:
            extras["restarts"] = restarts
        report(1.0)
        return AttackResult(
            100 * right.double().mean().item(),
            len(right),
            sum(part.seconds for part in found[1:] or found),
            nonfinite=int(clean.odd.sum()),
            notes=tuple(dict.fromkeys(notes)),
            precision=self.precision,
            right=right,
            **extras,
        )

    def _decided(self, part: Part, wanted: Tensor, report: Callable[[float], None]) -> Verdicts:
        """Return the verdicts of a part, after it has run on those of the `wanted` (N,) images that it has not seen."""
        verdicts = self.parts.setdefault(part.key, Verdicts.unknown(len(self.examples)))
        rows = (wanted & (verdicts.right == UNKNOWN)).nonzero().flatten()
        if not len(rows):
            return verdicts
        clock = time.perf_counter()
        for found in self.runner.run(part, self.team.share(rows), report):
            verdicts.add(found)
            self.team.tell(found, verdicts)
            now = time.perf_counter()
            verdicts.seconds, clock = verdicts.seconds + now - clock, now
            self.kept()
        self.team.settle(verdicts, self.kept)
        verdicts.seconds += time.perf_counter() - clock
        self.kept()
        return verdicts

    def _notes_of_several(self, name: str, clean: Tensor, found: list[PartResult]) -> list[str]:
        """Return what is to be said of APGD and AutoAttack."""
        notes = []
        if name != "apgd-ce" and self.classes < MINIMUM_CLASSES:
            ran = [PART_TITLES[part] for part in SEVERAL[name] if part != "apgd-t"]
            notes.append(
                f"targeted APGD needs {MINIMUM_CLASSES} classes and the model has {self.classes}: "
                f"what ran is {', '.join(ran)}"
            )
        if self.precision != "fp32":
            notes.append(
                f"{TITLES[name]} searched in {self.precision} first and then in float32; its accuracy is that of the "
                "float32 network, and can be published"
            )
        if name == "autoattack":
            rows = clean.nonzero().flatten()[: self.batch_size]
            if len(rows):
                batch = self.examples.take(rows)
                notes += warnings_of_autoattack(self.model, batch.images, batch.labels)
            by_square = sum(part.fooled for part in found if part.part.startswith("square"))
            if by_square > SQUARE_SHARE * len(clean):
                notes.append(
                    f"Square, which needs no gradient, fooled {by_square} images that the gradient attacks had not: "
                    "the model may hide its gradients, and be weaker than this"
                )
        return notes


def _notes(part: Part, odd: int) -> list[str]:
    """Return the sentence about the images for which something was odd, `Verdicts.odd`."""
    if not odd:
        return []
    if part.attack == "clean":
        return [
            f"the model returned NaN, infinity or too large numbers on {odd} clean images, which count as misclassified"
        ]
    title = PART_TITLES.get(part.attack) or TITLES[part.attack]
    return [f"the gradient was exactly zero for {odd} images under {title}, so it may have found too little"]


def _distortions(distortion: Tensor, clean: Tensor, right: Tensor, l2_budget: float) -> dict[str, float]:
    """Return the fields of an l2 attack: its distortions, and the accuracy if only those in the budget count."""
    found = distortion[clean & ~right]
    in_budget = right | (clean & (distortion > l2_budget))
    fields = {"l2_budget": l2_budget, "accuracy_in_budget": 100 * in_budget.double().mean().item()}
    if len(found):
        fields |= {"distortion_median": found.double().median().item(), "distortion_mean": found.double().mean().item()}
    return fields
