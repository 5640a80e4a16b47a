"""What a reproduction is: its plan, and a published row with what became of it."""

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
EVERY_RECIPE = "recipes"
"""Not a table of the paper: every recipe under every attack, one row each."""
NAMES = (*sorted((*published.TABLES, GRADIENT_TABLE)), EVERY_RECIPE)


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
class Row:
    """A published row and what became of it: figures of all seeds, in % or in the paper's scale."""

    source: PublishedRow
    config: TrainConfig
    published: dict[str, float]
    ours: dict[str, list[float]] = field(default_factory=dict)
    minutes: list[float] = field(default_factory=list)
    strict: dict[str, list[float]] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Forward passes of the network an image and epoch."""
        return recipes.get(self.source.recipe).cost

    def mean(self, name: str) -> float | None:
        return statistics.fmean(self.ours[name]) if self.ours.get(name) else None

    def spread(self, name: str) -> float | None:
        values = self.ours.get(name, [])
        return statistics.stdev(values) if len(values) > 1 else None

    def as_json(self) -> dict[str, Any]:
        figures = {}
        for name in dict.fromkeys((*self.published, *self.ours)):
            mean = self.mean(name)
            figure: dict[str, Any] = {"published": self.published.get(name), "ours": mean, "seeds": self.ours.get(name)}
            if mean is not None and name in self.published:
                figure["difference"] = mean - self.published[name]
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
    """The data set of the paper's table; digits for the table that is not the paper's."""
    if table == EVERY_RECIPE:
        return "digits"
    return published.TABLES[table].rows[0].data if table in published.TABLES else "cifar10"


def attack_epsilon(plan: Plan) -> float:
    """What stands for the paper's 8/255: the data set's own default, which is 8/255 for CIFAR and SVHN."""
    return float(resolve(TrainConfig(data=plan.data)).epsilon or 0)
