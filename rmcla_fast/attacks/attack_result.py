"""The result of an attack on a data set, as `evaluate` returns it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from rmcla_fast.options import AT_LEAST_1, NOT_NEGATIVE, PERCENT, fact


@dataclass(frozen=True)
class PartResult:
    """What one part of an attack did: it fooled `fooled` of the `attacked` images that the parts before it had left."""

    part: str
    attacked: int = fact(NOT_NEGATIVE)
    fooled: int = fact(NOT_NEGATIVE)
    seconds: float = fact(NOT_NEGATIVE)


@dataclass(frozen=True)
class AttackResult:
    """The `accuracy` in % of a model under one attack, over `images` images, measured in `seconds`.

    `right` (N,) bool says for each image whether the model classifies it correctly under the attack. `nonfinite` counts
    the clean images for which a logit is NaN or infinite, which count as misclassified. `notes` are sentences for the
    user. `seconds` contains those of the parts that other attacks have, too, and that ran only once for all of them.

    An l2 attack has more fields: `accuracy` counts its successes at any distortion, as the paper does, and
    `accuracy_in_budget` only those within `l2_budget`. `distortion_median` and `distortion_mean` are of its successes,
    in the unit of [0, 1] images. `parts` says what each part of APGD and AutoAttack did.
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
    library: str | None = None  # None: rmcla_fast itself
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    parts: tuple[PartResult, ...] = ()
    right: Tensor | None = field(default=None, repr=False, compare=False)  # (N,) bool on the CPU, image by image

    @property
    def standard_error(self) -> float:
        """Return the standard error of `accuracy` in percentage points, for other images of the same kind.

        Two images that are right and two that are wrong are added (Agresti and Coull, The American Statistician 1998).
        It would otherwise be 0 where all images are right or all are wrong.
        """
        right = (self.accuracy / 100 * self.images + 2) / (self.images + 4)
        return 100 * (right * (1 - right) / (self.images + 4)) ** 0.5

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without those that are empty or have their usual value."""
        entries = {name: value for name, value in asdict(self).items() if name != "right"}
        entries["seconds"] = round(self.seconds, 3)
        entries["standard_error"] = round(self.standard_error, 3)
        entries["notes"], entries["parts"] = list(self.notes), list(entries["parts"])
        for name, usual in (("nonfinite", 0), ("precision", "fp32")):
            if entries[name] == usual:
                del entries[name]
        return {name: value for name, value in entries.items() if value is not None and value != []}
