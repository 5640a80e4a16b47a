"""Protocols: options of a training run that a benchmark fixes."""

from __future__ import annotations

from typing import Any

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


# Options whose default for a data set stays. Digits of 8x8 pixels cannot be recognised after crops and flips, and an
# epsilon of 8/255 hardly changes them.
KEPT = {"digits": ("epsilon", "augment")}


def protocol_settings(protocol: str | None, data: str) -> dict[str, Any]:
    """Return the options that a protocol sets for a data set, with their values; none without a protocol."""
    if protocol is None:
        return {}
    for_data = {"model": "preact-resnet18", "monitor_images": 2000} if data == "tiny-imagenet" else {}
    settings = PROTOCOLS[protocol] | for_data
    return {name: value for name, value in settings.items() if name not in KEPT.get(data, ())}
