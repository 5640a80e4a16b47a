"""Bilateral Adversarial Training, fast: fused operators, and the training loop and evaluation built on them.

The operators load with the package; `rmcla_fast.attacks`, `.data`, `.models` and `.training` load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rmcla_fast import recipes
from rmcla_fast.adversarial_example import AdversarialExample, adversarial_example
from rmcla_fast.ops import (
    JointGradient,
    JointObjective,
    augment,
    joint_gradient,
    joint_objective,
    perturb_step,
    random_start,
    redistribute_labels,
    soft_cross_entropy,
)
from rmcla_fast.recipes import Recipe

if TYPE_CHECKING:
    from rmcla_fast import attacks, data, models, training
    from rmcla_fast.training.checkpoint import load

__version__ = "0.1.0"

__all__ = [
    "AdversarialExample",
    "JointGradient",
    "JointObjective",
    "Recipe",
    "adversarial_example",
    "attacks",
    "augment",
    "data",
    "joint_gradient",
    "joint_objective",
    "load",
    "models",
    "perturb_step",
    "random_start",
    "recipes",
    "redistribute_labels",
    "soft_cross_entropy",
    "training",
]

_LAZY_MODULES = ("attacks", "data", "models", "training")


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"rmcla_fast.{name}")
    if name == "load":
        return importlib.import_module("rmcla_fast.training.checkpoint").load
    raise AttributeError(f"module 'rmcla_fast' has no attribute {name!r}")
