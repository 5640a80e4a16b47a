"""A whole run in small, for the tests of the training loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rmcla_fast.training import TrainConfig

SMALL = TrainConfig(
    data="digits", images_per_class=20, epochs=2, batch_size=32, threads=1, monitor_every=1, log_every=2
)


def small(out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(SMALL, out=str(out), **changes)
