"""What a run says at its start about options that a user may not expect."""

from __future__ import annotations

from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.options import flag
from rmcla_fast.training.config import ResolvedConfig
from rmcla_fast.training.protocol import protocol_settings


def against_protocol(config: ResolvedConfig) -> list[str]:
    """Return a sentence for each option that differs from what the run's protocol sets."""
    return [
        f"--protocol {config.protocol} sets {flag(name)} {value}; the run takes {getattr(config, name)}"
        for name, value in protocol_settings(config.protocol, config.data).items()
        if getattr(config, name) != (parse_epsilon(value) if name == "epsilon" else value)
    ]


def remarks(config: ResolvedConfig, total_steps: int, held_out: int) -> list[str]:
    """Return the sentences that a run says of `total_steps` updates, with `held_out` images to measure on."""
    found = against_protocol(config)
    if held_out < config.monitor_images:
        found.append(
            f"--monitor-images {config.monitor_images:,} are more than a tenth of the training images, so {held_out:,} "
            "are held out"
        )
    if config.ema and total_steps <= 1 / (1 - config.ema):
        found.append(
            f"--ema {config.ema} averages over more updates than the {total_steps:,} of this run, so the average stays "
            "equal to the weights"
        )
    return found
