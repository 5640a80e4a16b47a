"""The settings of projected gradient descent, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rmcla_fast.attacks.checks import check_count, check_epsilon
from rmcla_fast.ops import checks

OBJECTIVES = ("ce", "margin")
MARGIN = 50.0


@dataclass(frozen=True)
class PGDSettings:
    """The settings with which `PGDAttack` attacks a batch; `pgd` describes each field in full.

    Args:
        epsilon: the radius in [0, 1] pixels (8/255), in (0, 1].
        step_size: positive, in the same unit.
        steps: gradient steps per restart, at least 1.
        objective: "ce" or "margin".
        margin: how far past the boundary the margin objective pushes, in logits.
        restarts: independent starts, at least 1.
        random_start: whether each restart begins with uniform noise in the ball.
        drop_fooled: whether an image stays as it is once the model misclassifies it.

    Raises:
        TypeError, ValueError: a field of the wrong kind or range.
    """

    epsilon: float
    step_size: float
    steps: int
    objective: str = "ce"
    margin: float = MARGIN
    restarts: int = 1
    random_start: bool = True
    drop_fooled: bool = False

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}; got {self.objective!r}")
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        checks.positive("step_size", self.step_size)
        checks.positive("margin", self.margin)

    @property
    def one_step(self) -> PGDSettings:
        """Return the settings of a single step. Attacks with the same single step share a CUDA graph."""
        return replace(self, steps=1, restarts=1, random_start=False)
