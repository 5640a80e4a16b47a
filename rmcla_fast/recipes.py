"""Every training method, the paper's, its baselines' and those beyond it, as one frozen value by name.

From "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019) and the works named at the entries.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any

TARGETS = ("mc", "ll", "random", "mosa", "mix", "untargeted", "margin")
CHOICES = {
    "start": ("uniform", "normal", "none"),
    "target": TARGETS,
    "label_scheme": ("main", "sup", "none"),
    "label_source": ("start", "clean"),
    "outer_loss": ("soft_ce", "trades"),
    "attack_mode": ("eval", "train"),
}


@dataclass(frozen=True)
class Recipe:
    """How one update makes its adversarial images and labels, and what loss it descends.

    Attributes:
        epsilon: the l-infinity radius, in the unit of [0, 1] images; positive (0 only without an attack).
        step_ratio: the attack's step over epsilon.
        steps: how many attack steps; 0 trains on the clean images.
        start: "uniform" noise, "normal" noise or "none"; never clipped to the pixel range.
        start_ratio: the uniform start's radius over epsilon; the normal start's standard deviation, in pixel units.
        project: whether a step ends inside the ball (and not only inside the pixel range).
        target: the attack's aim: the most confusing ("mc"), the least likely ("ll"), a "random" or the nearest ("mosa")
            class; "mix", which is "mosa" where the image is classified correctly and "mc" elsewhere; "untargeted"; or
            the "margin" to the most confusing class.
        label_scheme: adversarial labels by the paper's "main" or "sup" rule, or "none": one-hot.
        beta: how many times the largest other share the true class keeps. The paper has 9, and 11 for CIFAR-100.
        gamma: added to every share of "main".
        top_k: only the k most unlikely other classes receive mass; None is all.
        label_source: the logits that say target and labels: at the "start", or on "clean" images, by an extra forward.
        outer_loss: "soft_ce" on the adversarial images, or "trades": clean cross entropy plus `trades_weight` times
            KL(clean || adversarial), whose attack ascends that KL.
        trades_weight: that weight, 1 / lambda in the paper of TRADES.
        attack_mode: the model's mode in the attack, "eval" (as the paper) or "train" (batch statistics, not recorded).
        name: what it is called; `replace` keeps it, and recipes that differ in it alone are equal.
    """

    epsilon: float = 8 / 255
    step_ratio: float = 1.0
    steps: int = 1
    start: str = "uniform"
    start_ratio: float = 1.0
    project: bool = True
    target: str = "mc"
    label_scheme: str = "none"
    beta: float = 9.0
    gamma: float = 0.01
    top_k: int | None = None
    label_source: str = "start"
    outer_loss: str = "soft_ce"
    trades_weight: float = 6.0
    attack_mode: str = "eval"
    name: str = dataclasses.field(default="custom", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a word; got {self.name!r}")
        for field in ("epsilon", "step_ratio", "start_ratio", "trades_weight"):
            _number(field, getattr(self, field), least=0.0)
        for field in ("beta", "gamma"):
            if _number(field, getattr(self, field)) <= 0:
                raise ValueError(f"{field} must be positive; got {getattr(self, field)}")
        _integer("steps", self.steps, least=0)
        if self.top_k is not None:
            _integer("top_k", self.top_k, least=1)
        if not isinstance(self.project, bool):
            raise TypeError(f"project must be a bool; got {type(self.project).__name__}")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {', '.join(map(repr, choices))}; got {getattr(self, field)!r}"
                )
        if self.outer_loss == "trades" and (self.target, self.label_scheme) != ("untargeted", "none"):
            raise ValueError(
                "outer_loss 'trades' attacks its own KL term: it needs target 'untargeted' and label_scheme 'none'; "
                f"got {self.target!r} and {self.label_scheme!r}"
            )
        if self.steps == 0 and (self.label_scheme != "none" or self.outer_loss != "soft_ce"):
            raise ValueError("steps must be at least 1 where labels are redistributed or outer_loss is 'trades'; got 0")
        if self.steps and self.epsilon == 0:
            raise ValueError("epsilon must be positive where there is an attack; got 0")

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with other values, validated again: `recipes.get("r-mc-la9+").replace(epsilon=4/255)`."""
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            fields = ", ".join(field.name for field in dataclasses.fields(self))
            raise TypeError(f"a recipe has no {unknown[0]!r}; its fields are {fields}")
        return dataclasses.replace(self, **changes)

    @property
    def clean_forward(self) -> bool:
        """Whether the attack begins with a forward pass on the clean images."""
        return self.steps > 0 and (self.label_source == "clean" or self.outer_loss == "trades")

    @property
    def cost(self) -> int:
        """One update in forward passes of the network: a backward for the images or the weights alone counts as one."""
        return int(self.clean_forward) + 2 * self.steps + (6 if self.outer_loss == "trades" else 3)


def get(name: str) -> Recipe:
    """The recipe of that name; ValueError with the nearest names, and all of them, where there is none."""
    if name in _RECIPES:
        return _RECIPES[name]
    near = difflib.get_close_matches(str(name), _RECIPES, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"no recipe is called {name!r}; {hint}there are {', '.join(_RECIPES)}")


def names() -> tuple[str, ...]:
    """All names, the paper's first."""
    return tuple(_RECIPES)


def _number(field: str, value: Any, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} must be a number; got {type(value).__name__}")
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{field} must be finite{' and not negative' if least == 0 else ''}; got {value}")
    return float(value)


def _integer(field: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an int; got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{field} must be at least {least}; got {value}")


def _all() -> dict[str, Recipe]:
    one_step = Recipe(name="r-mc")
    labelled = one_step.replace(label_scheme="main")
    untargeted = one_step.replace(target="untargeted")
    # Noise of twice the radius and no projection (de Jorge et al., "Make some noise", NeurIPS 2022).
    noisy = untargeted.replace(name="n-fgsm", start_ratio=2.0, project=False)
    found = [
        Recipe(name="standard", steps=0, start="none", target="untargeted"),
        # Madry et al., ICLR 2018; in steps of 2/255 (CIFAR, SVHN) and of 3/255 in a ball of 16/255 (ImageNet).
        untargeted.replace(name="madry-pgd7-2", steps=7, step_ratio=1 / 4),
        untargeted.replace(name="madry-pgd10-3", steps=10, step_ratio=3 / 16, epsilon=16 / 255),
        # Zhang et al., ICML 2019: ten steps of 2/255 on the KL divergence, from 0.001 normal noise.
        untargeted.replace(
            name="trades", steps=10, step_ratio=1 / 4, start="normal", start_ratio=0.001, outer_loss="trades"
        ),
        untargeted.replace(name="r-fgsm"),
        one_step.replace(name="r-ll", target="ll"),
        one_step.replace(name="r-rand", target="random"),
        one_step,
    ]
    for name, recipe in {
        "r-mc-la": labelled,
        "r-mc-la9": labelled.replace(top_k=9),
        "r-mc-la-sup": labelled.replace(label_scheme="sup"),
        "r-mosa-la": labelled.replace(target="mosa"),
        "r-mix-la": labelled.replace(target="mix"),
    }.items():
        found += [recipe.replace(name=name), recipe.replace(name=f"{name}+", label_source="clean")]
    found += [
        # Wong et al., "Fast is better than free", ICLR 2020.
        untargeted.replace(name="fgsm-rs", step_ratio=1.25),
        noisy,
        # Beyond the paper: the larger, unprojected noise with the paper's target or labels.
        noisy.replace(name="n-mc-la", target="mc", label_scheme="main"),
        noisy.replace(name="n-fgsm-la", label_scheme="main"),
        noisy.replace(name="n-margin", target="margin"),
    ]
    return {recipe.name: recipe for recipe in found}


_RECIPES = _all()
