"""The comparison of what two runs wrote, to the bit."""

from __future__ import annotations

from typing import Any

import torch

# What may differ: measured times, digests of what holds them, and the names of folders.
MEASURED = frozenset(
    ("seconds", "images_per_second", "training_minutes", "sha256", "checkpoint_sha256", "out", "resume", "data_dir")
)


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Return the places where two contents differ in any bit, except for measured times and names of folders."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [at]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()) - MEASURED
        return [
            found for key in sorted(keys, key=str) for found in differences(one.get(key), other.get(key), f"{at}.{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            found
            for place, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{at}[{place}]")
        ]
    return [] if one == other else [at]
