"""What the parts of an evaluation have found out about each image, and how several processes share the images.

A part is one attack in one precision. Some attacks of `evaluate` are several parts one after another: AutoAttack is
APGD on cross entropy, targeted APGD, targeted FAB and Square. What a part decides about an image depends on that image
alone, so parts can be interrupted, shared between processes, and used for several attacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

UNKNOWN, FOOLED, RIGHT = -1, 0, 1


@dataclass(frozen=True)
class Part:
    """One attack in one precision, with a number of restarts."""

    attack: str
    precision: str = "fp32"
    restarts: int = 1

    @property
    def key(self) -> str:
        """Return the part's name, such as "clean", "ce20 x 9" or "apgd-t in bf16"."""
        many = f" x {self.restarts}" if self.restarts > 1 else ""
        return f"{self.attack}{many}" + ("" if self.precision == "fp32" else f" in {self.precision}")


class Finding(NamedTuple):
    """What a part found out about some images."""

    rows: Tensor  # (k,) int64 on the CPU: their places in the data set
    right: Tensor  # (k,) bool on the CPU: they withstood the attack
    distortion: Tensor | None = None  # (k,) on the CPU: l2 norm of the perturbation, infinite where the attack failed
    odd: Tensor | None = None  # (k,) bool on the CPU: see `Verdicts.odd`
    library: str | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Verdicts:
    """What a part has found out about the N images of a data set.

    Attributes:
        right: (N,) int8, RIGHT, FOOLED or UNKNOWN.
        odd: (N,) bool. Of the part "clean": a logit is NaN or infinite. Of APGD and FAB: the gradient was exactly zero
            at the beginning of a run. Of PGD: it was exactly zero in all steps of the last restart.
        distortion: (N,) float32, for l2 attacks; infinite where the attack failed or did not run.
        seconds: the time that the part has taken, as a clock on the wall shows it.
        library: the library that ran the part; None if it is ours.
        notes: sentences for the user.
    """

    right: Tensor
    odd: Tensor
    distortion: Tensor | None = None
    seconds: float = 0.0
    library: str | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def unknown(cls, count: int) -> Verdicts:
        return cls(torch.full((count,), UNKNOWN, dtype=torch.int8), torch.zeros(count, dtype=torch.bool))

    def add(self, found: Finding) -> None:
        """Take over what was found out about some images."""
        self.right[found.rows] = found.right.to(torch.int8)
        if found.odd is not None:
            self.odd[found.rows] = found.odd
        if found.distortion is not None:
            if self.distortion is None:
                self.distortion = torch.full(self.right.shape, float("inf"), dtype=torch.float32)
            self.distortion[found.rows] = found.distortion.to(self.distortion.dtype)
        self.library = found.library or self.library
        self.notes += [note for note in found.notes if note not in self.notes]


class Team:
    """The processes that share the images of an evaluation: here this one alone, which attacks all of them."""

    def share(self, rows: Tensor) -> Tensor:
        """Return those of `rows` that this process attacks."""
        return rows

    def tell(self, found: Finding, verdicts: Verdicts) -> None:
        """Tell the process that keeps the results what this one has found, or add to `verdicts` what others have."""

    def settle(self, verdicts: Verdicts, kept: Callable[[], None]) -> None:
        """Wait until every process has attacked its share, and bring `verdicts` to the same state in all of them.

        `kept` is called when something was added.
        """
