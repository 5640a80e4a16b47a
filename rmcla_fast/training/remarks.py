"""What a run says at its start about options that a user may not expect."""

from __future__ import annotations

from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.options import flag
from rmcla_fast.training.build import held_out_images
from rmcla_fast.training.config import ResolvedConfig
from rmcla_fast.training.protocol import protocol_settings
from rmcla_fast.training.resolve import extra_in_batch


def against_protocol(config: ResolvedConfig) -> list[str]:
    """Return a sentence for each option that differs from what the run's protocol sets."""
    return [
        f"--protocol {config.protocol} sets {_shown(name, value)}; the run takes {_value(name, getattr(config, name))}"
        for name, value in protocol_settings(config.protocol, config.data).items()
        if getattr(config, name) != (parse_epsilon(value) if name == "epsilon" else value)
    ]


def _shown(name: str, value: object) -> str:
    """Return how an option is given: "--epochs 100", "--augment" or "--no-augment"."""
    return _value(name, value) if isinstance(value, bool) else f"{flag(name)} {value}"


def _value(name: str, value: object) -> str:
    return flag(name if value else f"no_{name}") if isinstance(value, bool) else str(value)


def mixed_in(config: ResolvedConfig, extra: int) -> str:
    """Return how many extra images a run has, and how many of a batch they are, as a part of a sentence; else ""."""
    if config.extra_fraction is None:
        return ""
    count = extra_in_batch(config.batch_size, config.extra_fraction)
    return f"; {count} of the {config.batch_size} images in each batch are drawn from {extra:,} extra ones"


def remarks(config: ResolvedConfig, total_steps: int, train_images: int) -> list[str]:
    """Return the sentences that a run of `total_steps` updates says, on a data set with so many training images."""
    found = against_protocol(config)
    if config.protocol and config.init:
        found.append(f"--protocol {config.protocol} trains from random weights; the run starts from --init")
    held_out = held_out_images(config, train_images)
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
