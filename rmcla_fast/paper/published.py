"""The published figures: supplementary tables 1 to 5 of Wang and Zhang (ICCV 2019), their code's README, and others'.

Accuracies are in %, of attacks with epsilon 8/255 on CIFAR-10, CIFAR-100 and SVHN (16/255 on ImageNet).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EVALUATED_AT = 8 / 255
DATA_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "imagenet": "ImageNet"}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table: the recipe that makes such a model, how it was trained, and what each attack left."""

    name: str
    recipe: str
    figures: dict[str, float]
    data: str = "cifar10"
    train_epsilon: int = 8  # of 255
    images_per_class: int | None = None
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, {DATA_TITLES[self.data]}, trained with {self.train_epsilon}/255"


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper: what its columns are, how it was trained and its rows."""

    title: str
    attacks: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    beta: float = 9.0


PAPER_NETWORK, PAPER_EPOCHS = "wrn-28-10", 200

_PGD = ("clean", "fgsm", "ce20", "ce100", "cw100")
_FIRST = ("clean", "fgsm", "ce1000", "mi", "cw-l2-a", "cw-l2-b", "deepfool-l2")


def _figures(attacks: tuple[str, ...], *values: float | None) -> dict[str, float]:
    return {name: value for name, value in zip(attacks, values, strict=True) if value is not None}


def _pgd(name: str, recipe: str, *values: float, **about: Any) -> PublishedRow:
    return PublishedRow(name, recipe, _figures(_PGD, *values), **about)


TABLES = {
    "table1": PublishedTable(
        "Table 1: CIFAR-10, trained with epsilon 4/255, attacked with 8/255",
        _FIRST,
        (
            PublishedRow(
                "R-MC-LA+",
                "r-mc-la+",
                _figures(_FIRST, 92.8, 75.6, 61.4, 65.5, 65.4, 88.2, 77.8),
                train_epsilon=4,
            ),
            PublishedRow(
                "TRADES",
                "trades",
                _figures(_FIRST, 84.9, 61.1, 56.4, 58.0, 81.2, None, 81.6),
                note="published with one Ori-CW figure, without its setting; a WRN-34-10 trained with 8/255",
            ),
        ),
    ),
    "table2": PublishedTable(
        "Table 2: CIFAR-10, epsilon 8/255, images per class",
        _PGD,
        (
            _pgd("R-MC-LA 5K", "r-mc-la", 90.7, 69.6, 55.3, 53.8, 52.8, images_per_class=5000),
            _pgd("R-MC-LA 2K", "r-mc-la", 85.6, 56.1, 42.8, 41.1, 40.2, images_per_class=2000),
            _pgd("R-MC-LA 0.5K", "r-mc-la", 73.3, 33.7, 25.1, 24.5, 24.0, images_per_class=500),
        ),
    ),
    "table3": PublishedTable(
        "Table 3: CIFAR-100, epsilon 8/255",
        _PGD,
        (
            _pgd("R-MC-LA", "r-mc-la", 68.7, 30.5, 23.2, 22.7, 20.6, data="cifar100"),
            _pgd("R-MC-LA+", "r-mc-la+", 66.2, 31.3, 23.1, 22.4, 20.0, data="cifar100"),
            _pgd("R-MC-LA9", "r-mc-la9", 68.7, 33.7, 23.1, 22.0, 20.1, data="cifar100"),
            _pgd("R-MC-LA9+", "r-mc-la9+", 68.2, 36.9, 26.7, 25.3, 22.1, data="cifar100"),
            _pgd("Madry*", "madry-pgd7-2", 61.9, 28.8, 23.7, 23.4, 24.5, data="cifar100"),
        ),
        beta=11.0,
    ),
    "table5": PublishedTable(
        "Table 5: CIFAR-10, epsilon 8/255, the two label rules",
        _PGD,
        (
            _pgd("R-MC-LA main", "r-mc-la", 90.8, 69.3, 54.6, 52.9, 51.9),
            _pgd("R-MC-LA+ main", "r-mc-la+", 91.0, 70.3, 57.5, 55.2, 53.8),
            _pgd("R-MC-LA sup", "r-mc-la-sup", 90.2, 70.9, 53.2, 51.1, 49.9),
            _pgd("R-MC-LA+ sup", "r-mc-la-sup+", 91.5, 71.4, 57.2, 54.1, 51.5),
        ),
    ),
}

GRADIENT_MODELS = ("undefended", "madry", "ours")
"""Table 4's three models."""

GRADIENTS = {
    "cifar10": {"max": (349.9, 1.8, 1.6), "mean": (2.3, 0.022, 0.0098)},
    "svhn": {"max": (267.9, 15.3, 3.4), "mean": (0.77, 0.12, 0.022)},
    "imagenet": {"max": (0.48, 0.004, 0.084), "mean": (0.0044, 0.000038, 0.00014)},
}
"""Table 4, squared l2 norm of the input gradient, in the order of GRADIENT_MODELS; in the paper's scale."""

_README = ("clean", "ce100", "cw100")
README = (
    PublishedRow("R-MC-LA+", "r-mc-la+", _figures(_README, 91.2, 55.3, 53.9), note="public code"),
    PublishedRow(
        "R-MC-LA+",
        "r-mc-la+",
        # 29.35: AutoAttack's public table, of the model whose clean accuracy is 92.80.
        {**_figures(_README, 92.8, 62.4, 60.5), "autoattack": 29.35},
        train_epsilon=4,
        note="public code; 58.6 under PGD100 with 100 restarts",
    ),
    PublishedRow("R-MOSA-LA+", "r-mosa-la+", _figures(_README, 90.7, 61.3, 58.3), note="public code"),
    PublishedRow("R-MOSA-LA+", "r-mosa-la+", _figures(_README, 92.8, 71.0, 67.9), train_epsilon=4, note="public code"),
    PublishedRow("Madry", "madry-pgd7-2", _figures(_README, 88.0, 47.2, 48.1), note="trained by the public code"),
)

OTHERS = (
    # CIFAR-10 at 8/255; the clean figure and AutoAttack's alone.
    PublishedRow("FGSM-RS", "fgsm-rs", {"clean": 83.34, "autoattack": 43.21}, note="PreActResNet-18, RobustBench"),
    PublishedRow("N-FGSM", "n-fgsm", {"clean": 81.2, "autoattack": 45.2}, note="secondary source"),
    PublishedRow("TRADES", "trades", {"clean": 84.92, "autoattack": 53.08}, note="WRN-34-10, RobustBench"),
    PublishedRow("Madry", "madry-pgd7-2", {"clean": 87.14, "autoattack": 44.04}, note="RobustBench"),
)


def beside(recipe: str, data: str) -> tuple[dict[str, float], str]:
    """The published figures of a recipe, by attack, and what they are of; ({}, "") where none were published.

    Those of the same data are preferred; for other data, such as digits, the CIFAR-10 figures, and the text says so.
    The tables win over the public code's README, which adds what they lack, and others' AutoAttack figures come last.
    """
    tables = [row for name in ("table5", "table3", "table2", "table1") for row in TABLES[name].rows]
    found = [row for row in (*tables, *README, *OTHERS) if row.recipe == recipe]
    same = [row for row in found if row.data == data]
    chosen = same or [row for row in found if row.data == "cifar10"]
    if not chosen:
        return {}, ""
    first = chosen[0]
    figures = dict(first.figures)
    sources = [first.title]
    for row in chosen[1:]:
        new = {name: value for name, value in row.figures.items() if name not in figures}
        if new:
            figures |= new
            origin = f"trained with {row.train_epsilon}/255" + (f", {row.note}" if row.note else "")
            sources.append(f"{' and '.join(new)} of {row.name} {origin}")
    return figures, "; ".join(sources)


def gradient_recipes(data: str) -> tuple[str, str, str]:
    """The recipes that make table 4's models, in the order of GRADIENT_MODELS."""
    return "standard", "madry-pgd10-3" if data == "imagenet" else "madry-pgd7-2", "r-mc-la+"


def gradients_beside(recipe: str, data: str) -> tuple[dict[str, float], str]:
    """Table 4's max and mean of the model that the recipe makes, and whose they are; ({}, "") where there are none.

    For data that the table lacks, such as digits, CIFAR-10's figures, and the text says so.
    """
    families = ("standard", "madry-", "r-mc-la")
    position = next((i for i, family in enumerate(families) if recipe.startswith(family)), None)
    if position is None:
        return {}, ""
    known = data if data in GRADIENTS else "cifar10"
    figures = {name: values[position] for name, values in GRADIENTS[known].items()}
    return figures, f"{DATA_TITLES[known]}, {GRADIENT_MODELS[position]}"
