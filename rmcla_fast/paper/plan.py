"""What `rmcla reproduce` is asked for (a plan), and what it finds for each row of a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.attacks.suite import BATCH_SIZE
from rmcla_fast.errors import UserError
from rmcla_fast.options import AT_LEAST_1, Rule, argument, check, documented, one_of, option
from rmcla_fast.paper import published
from rmcla_fast.paper.published import PublishedRow
from rmcla_fast.precision import PRECISIONS
from rmcla_fast.training import TrainConfig
from rmcla_fast.training.config import ResolvedConfig
from rmcla_fast.training.resolve import resolve

GRADIENT_TABLE = "table4"
RECIPES_TABLE = "recipes"
"""A table that is not in the paper: one row for each recipe, one column for each attack."""
FASTAT_TABLE = "fastat"
"""Another one that is not in the paper: one-step recipes beside the published rows of the FastAT Benchmark."""
NAMES = (*sorted((*published.TABLES, GRADIENT_TABLE)), RECIPES_TABLE, FASTAT_TABLE)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers in "0,1,2".

    Raises:
        UserError: a part is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--seeds must be whole numbers separated by commas, such as 0,1,2; got {text!r}") from None


@documented
@dataclass(frozen=True)
class Plan:
    """The options of `rmcla reproduce`. If `data` is not given, it is the data set of the table in the paper.

    Raises:
        UserError: no table has this name, no seed is given, or a value has the wrong type or is out of range.
    """

    table: str = argument(
        "table1 ... table5; recipes: every recipe under every attack; or fastat: one-step recipes by the protocol of "
        "the FastAT Benchmark, beside its published methods",
        "TABLE",
    )
    data: str = option("data set", "", shown="the paper's")
    model: str | None = option("network", None, shown="the right one for the data set")
    epochs: int | None = option("epochs of each training", None, AT_LEAST_1, shown="the right number for the data set")
    seeds: tuple[int, ...] = option(
        "seeds, separated by commas; each row is trained once with each",
        (0,),
        Rule(lambda seeds: all(0 <= seed < 2**32 for seed in seeds), "whole numbers in [0, 2^32)"),
        shown="0",
        metavar="LIST",
        parse=whole_numbers,
    )
    data_dir: str | None = option("folder of the data set", None)
    out: Path = option("folder for the runs and tables", Path("reproduced"), metavar="FOLDER")
    autoattack: bool = option("run AutoAttack too, which is the slowest attack and the most reliable one", True)
    batch_size: int = option("images attacked together", BATCH_SIZE, AT_LEAST_1)
    device: str | None = option("cpu, cuda or cuda:1", None, shown="a GPU if there is one")
    precision: str | None = option("the network trains in fp32, bf16 or fp16", None, one_of(PRECISIONS), shown="fp32")

    def __post_init__(self) -> None:
        if self.table not in NAMES:
            raise UserError(f"no table is called {self.table!r}; there are {', '.join(NAMES)}")
        check(self)
        if not self.seeds:
            raise UserError("--seeds must name at least one seed")
        if not self.data:
            object.__setattr__(self, "data", default_data(self.table))  # the class is frozen

    @property
    def markdown(self) -> Path:
        """Return the path of the table as Markdown, OUT/TABLE-DATA.md; its other files are beside it."""
        return self.out / f"{self.table}-{self.data}.md"

    @property
    def protocol(self) -> str | None:
        """Return the protocol that the models of the table are trained by; None for the paper's tables."""
        return "fastat" if self.table == FASTAT_TABLE else None


@dataclass
class ReproducedRow:
    """A row of the table: the published figures, and our own figures so far.

    Attributes:
        source: the row as it was published.
        config: how the model of this row is trained.
        ours: our figures by name, one for each seed: accuracies in %, or squared gradients in the paper's scale. The
            table of the FastAT Benchmark has seconds of training and GiB of GPU memory, too.
        minutes: the minutes of training, one for each seed.
        failures: why a training failed whose loss was not finite, by seed; such a seed has no figures.
        remarks: what the training of this row said at its start about its options; none before it is trained.
        strict: our squared gradients for images in [0, 255], one for each seed; only in the table of gradients.
    """

    source: PublishedRow
    config: ResolvedConfig
    ours: dict[str, list[float]] = field(default_factory=dict)
    minutes: list[float] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
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

    def failed(self) -> list[str]:
        """Return what happened to each seed whose training failed."""
        return [f"{self.source.recipe}, seed {seed}: {why}" for seed, why in self.failures.items()]

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
            "failures": {str(seed): why for seed, why in self.failures.items()},
            "note": self.source.note,
        }


def default_data(table: str) -> str:
    """Return the data set of a table in the paper, or of the benchmark; digits for the table of recipes."""
    if table == RECIPES_TABLE:
        return "digits"
    return published.TABLES[table].rows[0].data if table in published.TABLES else "cifar10"


def attack_epsilon(plan: Plan) -> float:
    """Return the epsilon of the attacks: the protocol's, or the default for the data set (8/255 for CIFAR and SVHN)."""
    return resolve(TrainConfig(data=plan.data, protocol=plan.protocol)).epsilon
