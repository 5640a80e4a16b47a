"""What config.json and every checkpoint say about a run: its options, and facts of the data set and the library."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rmcla_fast
from rmcla_fast import sealed
from rmcla_fast.data.splits import DataSplits
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.options import AT_LEAST_1, NOT_NEGATIVE, Rule, fact
from rmcla_fast.schema import Mismatch, read_as
from rmcla_fast.training.config import ResolvedConfig, TrainConfig
from rmcla_fast.training.resolve import resolve

CONFIG = "config.json"
OPTIONS = tuple(field.name for field in dataclasses.fields(TrainConfig))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run's record holds besides the options."""

    epsilon_text: str = ""
    num_classes: int = fact(Rule(lambda count: 2 <= count < 2**31, "at least 2"))
    channels: int = fact(AT_LEAST_1)
    image_size: tuple[int, int] = fact(Rule(lambda size: min(size) >= 1, "at least 1x1"))
    train_images: int = fact(NOT_NEGATIVE)
    extra_images: int = fact(NOT_NEGATIVE, 0)
    extra_checksum: str = ""
    classes: tuple[str, ...] = ()
    rmcla_fast: str = ""
    torch: str = ""
    computed_by: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """The record of a run: `options` is how it was started, with every default put in."""

    options: ResolvedConfig
    facts: Facts

    def as_json(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return json.loads(json.dumps(dataclasses.asdict(self.options) | dataclasses.asdict(self.facts)))


def describe(config: ResolvedConfig, splits: DataSplits, computed_by: dict[str, Any]) -> RunRecord:
    """Return the record of a run on this data set.

    `computed_by` holds what the bits of the weights depend on besides the options and the version of torch.
    """
    channels, height, width = splits.train.shape
    facts = Facts(
        epsilon_text=format_epsilon(config.epsilon),
        num_classes=splits.num_classes,
        channels=channels,
        image_size=(height, width),
        train_images=len(splits.train),
        extra_images=0 if splits.extra is None else len(splits.extra),
        extra_checksum="" if splits.extra is None else splits.extra.checksum,
        classes=splits.classes,
        rmcla_fast=rmcla_fast.__version__,
        torch=str(torch.__version__),
        computed_by=computed_by,
    )
    return RunRecord(config, facts)


def parse_record(content: Any) -> RunRecord:
    """Return the record in the content of config.json.

    An option that is missing, since an older version wrote the file, has the default for the data set.

    Raises:
        Mismatch: the content is no record of a run.
    """
    facts = read_as(Facts, content)
    missing = [name for name in ("data", "model", "recipe", "epsilon", "out") if content.get(name) is None]
    if missing:
        raise Mismatch(f"{missing[0]} is missing")
    try:
        options = resolve(TrainConfig(**{name: content[name] for name in OPTIONS if name in content}))
    except UserError as error:
        raise Mismatch(str(error)) from error
    return RunRecord(options, facts)


def read_config(path: Path) -> RunRecord:
    """Return the record in a config.json.

    Raises:
        UserError: the file cannot be read, was changed after it was written, or does not hold the record of a run.
    """
    way_out = "no update is lost, since there is no checkpoint; remove the folder and start the run again"
    try:
        return parse_record(sealed.load(path))
    except sealed.Damaged as error:
        raise UserError(f"{path} {error}; {way_out}") from error
    except Mismatch as error:
        raise UserError(f"{path} does not hold the options of a run ({error}); {way_out}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
