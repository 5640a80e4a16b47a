"""`rmcla train`: its options are the fields of `TrainConfig`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rmcla_fast import training
from rmcla_fast.cli.options import options_of
from rmcla_fast.text import printable
from rmcla_fast.training import TrainConfig


@options_of(TrainConfig)
def command(
    config: TrainConfig, quiet: Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")] = False
) -> None:
    """Train a model and write a run folder: config.json, metrics.jsonl, checkpoints, TensorBoard events, curves.png.

    An option that is not given takes the default that is right for the data set.
    config.json records all options.
    """
    folder = training.train(config, quiet=quiet)
    # A program that reads the path needs it as it is. On a terminal, a name must not act as control characters.
    typer.echo(printable(folder) if sys.stdout.isatty() else os.fsencode(folder))
