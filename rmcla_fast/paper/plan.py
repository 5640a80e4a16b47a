"""Define what `rmcla reproduce` is asked for (a plan), and what it finds for each row of a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.attacks.suite import BATCH_SIZE
from rmcla_fast.paper import published
from rmcla_fast.paper.published import PublishedRow
from rmcla_fast.training import TrainConfig
from rmcla_fast.training.config import resolve

GRADIENT_TABLE = "table4"
RECIPES_TABLE = "recipes"
"""A table that is not in the paper: one row for each recipe, one column for each attack."""
NAMES = (*sorted((*published.TABLES, GRADIENT_TABLE)), RECIPES_TABLE)


@dataclass(frozen=True)
class Plan:
    """What to reproduce, and with what."""

    table: str
    data: str
    model: str | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] = (0,)
    data_dir: str | None = None
    out: Path = Path("reproduced")
    autoattack: bool = True
    batch_size: int = BATCH_SIZE
    device: str | None = None
    precision: str | None = None


@dataclass
class ReproducedRow:
    """A row of the table: the published figures, and our own figures so far.

    Attributes:
        source: the row as it was published.
        config: how the model of this row is trained.
        ours: our figures by name, one for each seed: accuracies in %, or squared gradients in the paper's scale.
        minutes: the minutes of training, one for each seed.
        strict: our squared gradients for images in [0, 255], one for each seed; only in the table of gradients.
    """

    source: PublishedRow
    config: TrainConfig
    ours: dict[str, list[float]] = field(default_factory=dict)
    minutes: list[float] = field(default_factory=list)
    strict: dict[str, list[float]] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Return the number of forward passes for each image in each epoch."""
        return recipes.get(self.source.recipe).cost

    def mean(self, name: str) -> float | None:
        """Return the mean over the seeds of one of our figures; None if there is no figure yet."""
        return statistics.fmean(self.ours[name]) if self.ours.get(name) else None

    def spread(self, name: str) -> float | None:
        """Return the standard deviation over the seeds of one of our figures; None with fewer than two seeds."""
        values = self.ours.get(name, [])
        return statistics.stdev(values) if len(values) > 1 else None

    def as_json(self) -> dict[str, Any]:
        published_figures = self.source.figures
        figures = {}
        for name in dict.fromkeys((*published_figures, *self.ours)):
            mean, known = self.mean(name), published_figures.get(name)
            figure: dict[str, Any] = {"published": known, "ours": mean, "seeds": self.ours.get(name)}
            if mean is not None and known is not None:
                figure["difference"] = mean - known
            if name in self.strict:
                figure["ours_strict_scale"] = statistics.fmean(self.strict[name])
            figures[name] = figure
        return {
            "name": self.source.name,
            "recipe": self.source.recipe,
            "figures": figures,
            "passes_per_image": self.passes,
            "epochs": self.config.epochs,
            "training_minutes": statistics.fmean(self.minutes) if self.minutes else None,
            "note": self.source.note,
        }


def default_data(table: str) -> str:
    """Return the data set of a table in the paper; digits for the table of recipes, which is not in the paper."""
    if table == RECIPES_TABLE:
        return "digits"
    return published.TABLES[table].rows[0].data if table in published.TABLES else "cifar10"


def attack_epsilon(plan: Plan) -> float:
    """Return the epsilon of the attacks: the default for the data set, which is 8/255 for CIFAR and SVHN."""
    return float(resolve(TrainConfig(data=plan.data)).epsilon or 0)
