"""The options of a run settled: every default put in, every value checked, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from rmcla_fast.data import DATASETS
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.models import libraries
from rmcla_fast.options import check, flag, plain
from rmcla_fast.schema import shortened
from rmcla_fast.text import did_you_mean
from rmcla_fast.training.config import DEFAULTS, EXTRA_FRACTION, PRETRAINED, ResolvedConfig, TrainConfig
from rmcla_fast.training.protocol import protocol_settings

# These options say where a run is stored and how it is monitored, so a resumed run may change them.
# The others decide the weights and must stay as they were.
FREE_ON_RESUME = frozenset(
    (
        "out",
        "resume",
        "data_dir",
        "extra_data",  # the file may have moved; that its arrays are the same is checked
        "device",
        "workers",
        "stop_on_overfitting",
        "skip_unreadable",
        "checkpoint_every",
        "log_every",
    )
)


def resolve(config: TrainConfig) -> ResolvedConfig:
    """Return the options with every default put in and every value checked.

    Raises:
        UserError: one sentence: the data set is missing or unknown, or a value has the wrong type or is out of range.
    """
    if config.data is None:
        raise UserError(f"--data is missing; one of: {', '.join(DATASETS)}")
    if config.data not in DATASETS:
        hint = did_you_mean(str(config.data), DATASETS)
        raise UserError(f"unknown data set {shortened(config.data)}; {hint}one of: {', '.join(DATASETS)}")
    check(config)
    filled = DEFAULTS[config.data] | protocol_settings(config.protocol, config.data) | _given(config)
    filled = _settled(filled)
    filled["out"] = str(filled.get("out", f"runs/{config.data}-{filled['recipe']}"))
    if config.init_sha256 is not None and config.init is None:
        raise UserError("--init-sha256 needs the weights that it belongs to; give --init")
    if config.extra_data is not None:
        filled.setdefault("extra_fraction", EXTRA_FRACTION)
        extra_in_batch(filled["batch_size"], filled["extra_fraction"])
    elif config.extra_fraction is not None:
        raise UserError(f"--extra-fraction {config.extra_fraction} needs images to draw; give --extra-data")
    if config.extra_data is not None and config.data == "imagenet":
        raise UserError("--extra-data cannot be used with --data imagenet, whose images are decoded batch by batch")
    return ResolvedConfig(**filled)


def _settled(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with epsilon as a number, and with absolute paths.

    The run may be resumed and evaluated from another working folder.
    """
    settled = dict(given)
    if "epsilon" in given:
        settled["epsilon"] = parse_epsilon(given["epsilon"])
    if "model" in given:
        settled["model"] = libraries.settled(given["model"])
    for name in ("data_dir", "extra_data", "init"):
        if name in given and given[name] != PRETRAINED:
            settled[name] = str(Path(os.path.expanduser(given[name])).absolute())
    return settled


def extra_in_batch(batch_size: int, fraction: float) -> int:
    """Return how many images of a batch are extra ones.

    Raises:
        UserError: the batch would have no extra image, or no other one.
    """
    count = round(fraction * batch_size)
    if not 0 < count < batch_size:
        raise UserError(
            f"--extra-fraction {fraction} makes {count} of the {batch_size} images in a batch extra ones; give a "
            "fraction or a --batch-size that leaves at least one extra image and one of the data set's own"
        )
    return count


def _given(config: TrainConfig) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: plain(value) for name, value in values.items() if value is not None}


def resumed(asked: TrainConfig, recorded: ResolvedConfig) -> TrainConfig:
    """Return the recorded run's options, with what may change taken from `asked`.

    Raises:
        UserError: an option was given that differs from the recorded one and would change the weights.
    """
    check(asked)
    given = _settled(_given(asked))
    for name, value in given.items():
        before = getattr(recorded, name)
        if name not in FREE_ON_RESUME and value != before:
            raise UserError(
                f"the run was started with {flag(name)} {before} and cannot be resumed with {value}; "
                f"leave {flag(name)} out, or start another run with --out"
            )
    return dataclasses.replace(recorded, **given)
