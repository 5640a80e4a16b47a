"""Protocols: options that a benchmark fixes, and what a run says where its options differ from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.options import flag

if TYPE_CHECKING:
    from rmcla_fast.training.config import ResolvedConfig

# The settings of the FastAT Benchmark (Pan and Yao, arXiv 2604.22853, 2026) on CIFAR-10 and CIFAR-100. Its weight decay
# also applies to biases and batch norm, and its learning rate changes once an epoch.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "fastat": {
        "model": "resnet18",
        "epsilon": "8/255",
        "label_smoothing": 0.4,
        "epochs": 100,
        "batch_size": 128,
        "lr": 0.1,
        "schedule": "one-cycle-cosine",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "ema": 0.9995,
        "clip_grad": 0.0,
        "augment": True,
        "monitor_images": 1000,
        "monitor_every": 1,
    }
}


def protocol_settings(protocol: str | None, data: str) -> dict[str, Any]:
    """Return the options that a protocol sets for a data set, with their values; none without a protocol."""
    for_data = {"model": "preact-resnet18", "monitor_images": 2000} if data == "tiny-imagenet" else {}
    return {} if protocol is None else PROTOCOLS[protocol] | for_data


def against_protocol(config: ResolvedConfig) -> list[str]:
    """Return a sentence for each option that differs from what the run's protocol sets."""
    return [
        f"--protocol {config.protocol} sets {flag(name)} {value}; the run takes {getattr(config, name)}"
        for name, value in protocol_settings(config.protocol, config.data).items()
        if getattr(config, name) != (parse_epsilon(value) if name == "epsilon" else value)
    ]


def remarks(config: ResolvedConfig, total_steps: int) -> list[str]:
    """Return what a run of `total_steps` updates says at its start about options that a user may not expect."""
    found = against_protocol(config)
    if config.ema and total_steps <= 1 / (1 - config.ema):
        found.append(
            f"--ema {config.ema} averages over more updates than the {total_steps:,} of this run, so the average stays "
            "equal to the weights"
        )
    return found
