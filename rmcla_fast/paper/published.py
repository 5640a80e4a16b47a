"""Published figures: supplementary tables 1 to 5 of Wang and Zhang (ICCV 2019) and other sources.

The other sources are the README of their public code, and the papers and leaderboards that the notes name. Accuracies
are in %. The attacks have epsilon 8/255 on CIFAR-10, CIFAR-100 and SVHN, and 16/255 on ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DATA_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "imagenet": "ImageNet"}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        name: the name of the model as it was printed.
        recipe: the recipe of this library that trains such a model.
        figures: the accuracy in % under each attack, or the squared gradients of table 4.
        data: the data set.
        train_epsilon: the epsilon of training, in units of 1/255.
        images_per_class: the number of training images of each class; None if all of them were used.
        note: what a reader of the row must know.
        deviations: the standard deviations of the figures over seeds, if they were published.
    """

    name: str
    recipe: str
    figures: dict[str, float]
    data: str = "cifar10"
    train_epsilon: int = 8
    images_per_class: int | None = None
    note: str = ""
    deviations: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name}, {DATA_TITLES[self.data]}, trained with {self.train_epsilon}/255"


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper: its title, its columns, its rows, and the beta that its models were trained with."""

    title: str
    attacks: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    beta: float = 9.0


PAPER_NETWORK, PAPER_EPOCHS = "wrn-28-10", 200

PGD_ATTACKS = ("clean", "fgsm", "ce20", "ce100", "cw100")
TABLE_1_ATTACKS = ("clean", "fgsm", "ce1000", "mi", "cw-l2-a", "cw-l2-b", "deepfool-l2")
README_ATTACKS = ("clean", "ce100", "cw100")


def _figures(attacks: tuple[str, ...], *values: float | None) -> dict[str, float]:
    return {name: value for name, value in zip(attacks, values, strict=True) if value is not None}


def _pgd_row(name: str, recipe: str, *values: float, **options: Any) -> PublishedRow:
    return PublishedRow(name, recipe, _figures(PGD_ATTACKS, *values), **options)


TABLES = {
    "table1": PublishedTable(
        "Table 1: CIFAR-10, trained with epsilon 4/255, attacked with 8/255",
        TABLE_1_ATTACKS,
        (
            PublishedRow(
                "R-MC-LA+",
                "r-mc-la+",
                _figures(TABLE_1_ATTACKS, 92.8, 75.6, 61.4, 65.5, 65.4, 88.2, 77.8),
                train_epsilon=4,
            ),
            PublishedRow(
                "TRADES",
                "trades",
                _figures(TABLE_1_ATTACKS, 84.9, 61.1, 56.4, 58.0, 81.2, None, 81.6),
                note="only one CW figure was published, without its setting; a WRN-34-10 trained with 8/255",
            ),
        ),
    ),
    "table2": PublishedTable(
        "Table 2: CIFAR-10, epsilon 8/255, images per class",
        PGD_ATTACKS,
        (
            _pgd_row("R-MC-LA 5K", "r-mc-la", 90.7, 69.6, 55.3, 53.8, 52.8, images_per_class=5000),
            _pgd_row("R-MC-LA 2K", "r-mc-la", 85.6, 56.1, 42.8, 41.1, 40.2, images_per_class=2000),
            _pgd_row("R-MC-LA 0.5K", "r-mc-la", 73.3, 33.7, 25.1, 24.5, 24.0, images_per_class=500),
        ),
    ),
    "table3": PublishedTable(
        "Table 3: CIFAR-100, epsilon 8/255",
        PGD_ATTACKS,
        (
            _pgd_row("R-MC-LA", "r-mc-la", 68.7, 30.5, 23.2, 22.7, 20.6, data="cifar100"),
            _pgd_row("R-MC-LA+", "r-mc-la+", 66.2, 31.3, 23.1, 22.4, 20.0, data="cifar100"),
            _pgd_row("R-MC-LA9", "r-mc-la9", 68.7, 33.7, 23.1, 22.0, 20.1, data="cifar100"),
            _pgd_row("R-MC-LA9+", "r-mc-la9+", 68.2, 36.9, 26.7, 25.3, 22.1, data="cifar100"),
            _pgd_row("Madry*", "madry-pgd7-2", 61.9, 28.8, 23.7, 23.4, 24.5, data="cifar100"),
        ),
        beta=11.0,
    ),
    "table5": PublishedTable(
        "Table 5: CIFAR-10, epsilon 8/255, the two rules for the labels",
        PGD_ATTACKS,
        (
            _pgd_row("R-MC-LA main", "r-mc-la", 90.8, 69.3, 54.6, 52.9, 51.9),
            _pgd_row("R-MC-LA+ main", "r-mc-la+", 91.0, 70.3, 57.5, 55.2, 53.8),
            _pgd_row("R-MC-LA sup", "r-mc-la-sup", 90.2, 70.9, 53.2, 51.1, 49.9),
            _pgd_row("R-MC-LA+ sup", "r-mc-la-sup+", 91.5, 71.4, 57.2, 54.1, 51.5),
        ),
    ),
}

GRADIENT_MODELS = ("undefended", "madry", "ours")
"""The three models of table 4."""

GRADIENTS = {
    "cifar10": {"max": (349.9, 1.8, 1.6), "mean": (2.3, 0.022, 0.0098)},
    "svhn": {"max": (267.9, 15.3, 3.4), "mean": (0.77, 0.12, 0.022)},
    "imagenet": {"max": (0.48, 0.004, 0.084), "mean": (0.0044, 0.000038, 0.00014)},
}
"""Table 4: the squared l2 norm of the input gradient in the paper's scale, in the order of GRADIENT_MODELS."""

README = (
    PublishedRow("R-MC-LA+", "r-mc-la+", _figures(README_ATTACKS, 91.2, 55.3, 53.9), note="public code"),
    PublishedRow(
        "R-MC-LA+",
        "r-mc-la+",
        # 29.35 is from AutoAttack's public table, where this model has a clean accuracy of 92.80.
        {**_figures(README_ATTACKS, 92.8, 62.4, 60.5), "autoattack": 29.35},
        train_epsilon=4,
        note="public code, whose README has 58.6 under PGD100 with 100 restarts",
    ),
    PublishedRow("R-MOSA-LA+", "r-mosa-la+", _figures(README_ATTACKS, 90.7, 61.3, 58.3), note="public code"),
    PublishedRow(
        "R-MOSA-LA+", "r-mosa-la+", _figures(README_ATTACKS, 92.8, 71.0, 67.9), train_epsilon=4, note="public code"
    ),
    PublishedRow(
        "Madry", "madry-pgd7-2", _figures(README_ATTACKS, 88.0, 47.2, 48.1), note="trained by the public code"
    ),
)

OTHERS = (
    # CIFAR-10 with epsilon 8/255. Only the clean accuracy and the one under AutoAttack are known.
    PublishedRow("FGSM-RS", "fgsm-rs", {"clean": 83.34, "autoattack": 43.21}, note="PreActResNet-18, RobustBench"),
    PublishedRow("N-FGSM", "n-fgsm", {"clean": 81.2, "autoattack": 45.2}, note="secondary source"),
    PublishedRow("TRADES", "trades", {"clean": 84.92, "autoattack": 53.08}, note="WRN-34-10, RobustBench"),
    PublishedRow("Madry", "madry-pgd7-2", {"clean": 87.14, "autoattack": 44.04}, note="RobustBench"),
)


def accuracies_of(recipe: str, data: str) -> tuple[dict[str, float], str]:
    """Return the published accuracies of a recipe on a data set by attack, and the models that they were measured on.

    If sources disagree, the paper's tables come first, then the README of its public code, then the other sources.

    Returns:
        ({}, "") if nothing was published for this data set: figures of another data set cannot be compared.
    """
    tables = [row for name in ("table5", "table3", "table2", "table1") for row in TABLES[name].rows]
    found = [row for row in (*tables, *README, *OTHERS) if row.recipe == recipe and row.data == data]
    figures: dict[str, float] = {}
    sources = []
    for row in found:
        new = {name: value for name, value in row.figures.items() if name not in figures}
        if not figures:
            sources.append(row.title)
        elif new:
            origin = f"trained with {row.train_epsilon}/255" + (f", {row.note}" if row.note else "")
            sources.append(f"{' and '.join(new)} of {row.name} {origin}")
        figures |= new
    return figures, "; ".join(sources)


def gradient_recipes(data: str) -> tuple[str, str, str]:
    """Return the recipes that train the models of table 4, in the order of GRADIENT_MODELS."""
    return "standard", "madry-pgd10-3" if data == "imagenet" else "madry-pgd7-2", "r-mc-la+"


def gradients_of(recipe: str, data: str) -> tuple[dict[str, float], str]:
    """Return the max and mean in table 4 for the model that a recipe trains on a data set, and the name of that model.

    Returns:
        ({}, "") if table 4 has no such model or not this data set.
    """
    if "," in recipe:  # its fields are changed
        return {}, ""
    families = ("standard", "madry-", "r-mc-la")
    column = next((i for i, family in enumerate(families) if recipe.startswith(family)), None)
    if column is None or data not in GRADIENTS:
        return {}, ""
    figures = {name: values[column] for name, values in GRADIENTS[data].items()}
    return figures, f"{DATA_TITLES[data]}, {GRADIENT_MODELS[column]}"
