"""Recipes: the settings of every training method, by name.

The methods are those of "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), its baselines, and some beyond
the paper. Comments at the entries name the source of each.
"""

from __future__ import annotations

import dataclasses
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rmcla_fast.text import did_you_mean

TARGETS = ("mc", "ll", "random", "mosa", "mix", "untargeted", "margin")
CHOICES = {
    "start": ("uniform", "normal", "none"),
    "target": TARGETS,
    "label_scheme": ("main", "sup", "none"),
    "label_source": ("start", "clean"),
    "outer_loss": ("soft_ce", "trades"),
    "attack_mode": ("eval", "train"),
}

MOST = 1_000_000  # for attack steps and classes, far beyond any use; the operators take no more than 64 bits
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Recipe:
    """The settings of a training method: how an update makes its adversarial images and labels, and its loss.

    Attributes:
        epsilon: the l-infinity radius, in the unit of [0, 1] images; positive (0 is allowed only without an attack).
        step_ratio: the step size of the attack, divided by epsilon.
        steps: the number of attack steps; 0 trains on the clean images.
        start: the noise added before the first step, "uniform", "normal" or "none"; it is not clipped to the pixel
            range.
        start_ratio: the radius of uniform noise, divided by epsilon; the standard deviation of normal noise, in the
            unit of [0, 1] images.
        project: whether each step is projected onto the epsilon ball (and not only onto the pixel range).
        target: the aim of the attack: the most confusing class ("mc"), the least likely ("ll"), a random one ("random")
            or the nearest ("mosa"); "mix", which is "mosa" for correctly classified images and "mc" for the others;
            "untargeted"; or the "margin" to the most confusing class.
        label_scheme: adversarial labels by the rule "main" of the paper or "sup" of its supplement, or one-hot labels
            ("none").
        beta: the true class keeps `beta` times the largest share of another class. The paper uses 9, and 11 for
            CIFAR-100.
        gamma: a constant added to every share of "main".
        top_k: only the `top_k` least likely other classes receive mass; None means all of them.
        label_source: the images whose logits decide the target and the labels: the noisy images of the first step
            ("start"), or the "clean" images, which takes an extra forward pass.
        outer_loss: "soft_ce" on the adversarial images, or "trades": cross entropy on the clean images plus
            `trades_weight` times KL(clean || adversarial), where the attack ascends the KL term.
        trades_weight: the weight of the KL term, 1 / lambda in the TRADES paper.
        attack_mode: the model's mode during the attack, "eval" (as in the paper) or "train" (batch statistics, without
            updating the running ones).
        label_smoothing: in [0, 1): the loss moves this share of each label to all classes alike. The attack uses the
            labels as they are.
        name: the name of the recipe. `replace` keeps it, and comparisons ignore it.
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
    label_smoothing: float = 0.0
    name: str = dataclasses.field(default="custom", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty str; got {self.name!r}")
        for field in ("epsilon", "step_ratio", "start_ratio", "trades_weight"):
            _number(field, getattr(self, field), least=0.0)
        if self.epsilon > 1:
            raise ValueError(
                f"epsilon must be at most 1, since it is for images in [0, 1]; got {self.epsilon:g}, "
                f"and {self.epsilon:g} of 255 levels is {self.epsilon:g} / 255"
            )
        if _number("label_smoothing", self.label_smoothing, least=0.0) >= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}")
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
            raise ValueError("steps must be at least 1 if labels are redistributed or outer_loss is 'trades'; got 0")
        if self.steps and self.epsilon == 0:
            raise ValueError("epsilon must be positive if steps is not 0; got 0")

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed, for example `recipes.get("r-mc-la9+").replace(epsilon=4/255)`.

        Raises:
            TypeError, ValueError: an unknown field, or a value that the recipe does not allow.
        """
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            fields = ", ".join(field.name for field in dataclasses.fields(self))
            raise TypeError(f"a recipe has no field {unknown[0]!r}; its fields are {fields}")
        return dataclasses.replace(self, **changes)

    @property
    def clean_forward(self) -> bool:
        """Return whether the attack begins with a forward pass on the clean images."""
        return self.steps > 0 and (self.label_source == "clean" or self.outer_loss == "trades")

    @property
    def cost(self) -> int:
        """Return the cost of one update in forward passes of the network.

        A backward pass for only the images, or for only the weights, counts as one forward pass.
        """
        return int(self.clean_forward) + 2 * self.steps + (6 if self.outer_loss == "trades" else 3)

    @property
    def takes_soft_labels(self) -> bool:
        """Return whether the labels of a batch may be soft: the attack and the loss use nothing else of them."""
        untargeted = self.target == "untargeted" and self.label_scheme == "none"
        return untargeted and self.label_source == "start" and self.outer_loss == "soft_ce"


def get(name: str) -> Recipe:
    """Return the recipe called `name`, which may be followed by fields to change: "n-fgsm,start_ratio=1.5".

    Raises:
        ValueError: an unknown name (the message suggests similar names and lists all of them), an unknown field, or a
            value that the field does not allow.
    """
    name, *changes = str(name).split(",")
    if name not in _RECIPES:
        hint = did_you_mean(name, _RECIPES, most=3)
        raise ValueError(f"no recipe is called {name[:60]!r}; {hint}there are {', '.join(_RECIPES)}")
    if not changes:
        return _RECIPES[name]
    changed: dict[str, Any] = {}
    for field, value in map(_change, changes):
        if field in changed:
            raise ValueError(f"{field} is changed twice in the recipe's name")
        changed[field] = value
    try:
        return _RECIPES[name].replace(**changed, name=",".join((name, *changes)))
    except TypeError as error:
        raise ValueError(str(error)) from error


def _change(text: str) -> tuple[str, Any]:
    """Return field and value of a change such as "start_ratio=1.5" or "epsilon=8/255"."""
    field, given, value = text.partition("=")
    kinds = {field.name: str(field.type) for field in dataclasses.fields(Recipe) if field.name != "name"}
    if field not in kinds or not given:
        hint = "" if field in kinds else did_you_mean(field, kinds)
        raise ValueError(
            f"a change of a recipe has the form FIELD=VALUE; got {text[:60]!r}; {hint}fields: {', '.join(kinds)}"
        )
    if kinds[field] == "str":
        return field, value
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return field, words[value.lower()]
    above, fraction, below = value.partition("/")
    if fraction and _NUMBER.fullmatch(above) and _NUMBER.fullmatch(below) and float(below):
        return field, float(above) / float(below)
    if not _NUMBER.fullmatch(value):
        raise ValueError(f"{field} must be a number, true, false or none; got {value[:60]!r}")
    with suppress(ValueError):  # for a fraction, and for more digits than Python reads
        return field, int(value)
    return field, float(value)


def names() -> tuple[str, ...]:
    """Return the names of all recipes, those of the paper first."""
    return tuple(_RECIPES)


def _number(field: str, value: Any, least: float = -math.inf) -> float:
    """Return a finite number of at least `least` as a float; raise for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} must be a number; got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        value = number = math.inf
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{field} must be finite{' and not negative' if least == 0 else ''}; got {value}")
    return number


def _integer(field: str, value: Any, least: int) -> None:
    """Raise unless `value` is an int from `least` to MOST."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an int; got {type(value).__name__}")
    if value < least or value > MOST:
        bound = f"at least {least}" if value < least else f"at most {MOST:,}"
        raise ValueError(f"{field} must be {bound}; got {value}")


def _all_recipes() -> dict[str, Recipe]:
    one_step = Recipe(name="r-mc")
    with_labels = one_step.replace(label_scheme="main")
    untargeted = one_step.replace(target="untargeted")
    # De Jorge et al., "Make some noise", NeurIPS 2022: noise of twice the radius, and no projection.
    noisy = untargeted.replace(name="n-fgsm", start_ratio=2.0, project=False)
    found = [
        Recipe(name="standard", steps=0, start="none", target="untargeted"),
        # Madry et al., ICLR 2018: steps of 2/255 for CIFAR and SVHN, and of 3/255 in a ball of 16/255 for ImageNet.
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
        "r-mc-la": with_labels,
        "r-mc-la9": with_labels.replace(top_k=9),
        "r-mc-la-sup": with_labels.replace(label_scheme="sup"),
        "r-mosa-la": with_labels.replace(target="mosa"),
        "r-mix-la": with_labels.replace(target="mix"),
    }.items():
        found += [recipe.replace(name=name), recipe.replace(name=f"{name}+", label_source="clean")]
    found += [
        # Wong et al., "Fast is better than free", ICLR 2020.
        untargeted.replace(name="fgsm-rs", step_ratio=1.25),
        noisy,
        # Not in the paper: the noise of n-fgsm with the paper's target or labels, or with the margin.
        noisy.replace(name="n-mc-la", target="mc", label_scheme="main"),
        noisy.replace(name="n-fgsm-la", label_scheme="main"),
        noisy.replace(name="n-margin", target="margin"),
    ]
    return {recipe.name: recipe for recipe in found}


_RECIPES = _all_recipes()
