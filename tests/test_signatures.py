"""The defaults of the operators' arguments, and the names that the packages export."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rmcla_fast
from rmcla_fast import reference

OPERATORS = ["augment", "joint_gradient", "perturb_step", "random_start", "redistribute_labels", "soft_cross_entropy"]
RULE = {"beta": 9.0, "gamma": 0.01, "top_k": None, "label_scheme": "main", "backend": None}
DEFAULTS: dict[str, dict[str, Any]] = {
    "augment": {
        **{"padding": 4, "flip": True, "fill": 128, "memory_format": torch.contiguous_format},
        "backend": None,
    },
    "joint_gradient": {"target": "mc", **RULE},
    "joint_objective": {"target": "mc", **RULE},
    "redistribute_labels": {"out": None, **RULE},
    "perturb_step": {"lower": 0.0, "upper": 1.0, "mask": None, "out": None, "backend": None},
    "random_start": {"lower": 0.0, "upper": 1.0, "clip": False, "mask": None, "out": None, "backend": None},
    "soft_cross_entropy": {"reduction": "mean", "label_smoothing": 0.0, "backend": None},
}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_public_operator_has_the_defaults_that_the_documentation_says(name: str) -> None:
    assert defaults(getattr(rmcla_fast, name)) == DEFAULTS[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_a_reference_has_the_defaults_of_its_operator(name: str) -> None:
    other_names = {"target_labels": None, "channels_last": False, "label_gradient": False}
    for argument, value in defaults(getattr(reference, name)).items():
        assert value == {**DEFAULTS[name], **other_names}[argument], argument


EXPORTS: dict[str, set[str]] = {
    "rmcla_fast.ops": {*OPERATORS, "joint_objective", "JointGradient", "JointObjective"},
    "rmcla_fast.reference": set(OPERATORS),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_package_exports_its_operators(name: str) -> None:
    package = importlib.import_module(name)
    assert sorted(package.__all__) == sorted(EXPORTS[name])
    for each in package.__all__:
        assert getattr(package, each).__name__ == each
