"""Bad arguments of the operators on logits: every backend raises the same sentence, which names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bad_input_cases import (
    BACKEND,
    INF,
    NAN,
    Direct,
    Operator,
    assert_bad_values_raise_one_sentence,
    assert_every_argument_has_a_row,
    assert_kernels_refuse,
    constant,
    elsewhere,
    ones,
    overlapping,
    sparse,
)
from conftest import Backend

import rmcla_fast


def row_arguments(device: torch.device) -> dict[str, Any]:
    return {"logits": torch.randn(3, 5, device=device), "labels": torch.tensor([0, 4, 2], device=device)}


LOGITS = [
    ("logits", constant([[1.0, 2.0]]), TypeError, "logits must be a tensor; got list"),
    ("logits", constant(np.ones((3, 5))), TypeError, "logits must be a tensor; got ndarray"),
    ("logits", ones(3, 5, dtype=torch.int64), TypeError, "logits must be float32, .*; got torch.int64"),
    ("logits", ones(3, 5, dtype=torch.uint8), TypeError, "logits must be float32, .*; got torch.uint8"),
    ("logits", ones(3, 5, dtype=torch.complex64), TypeError, "logits must be float32, .*; got torch.complex64"),
    ("logits", ones(3), ValueError, r"logits must have shape \(B, C\); got \(3,\)"),
    ("logits", ones(3, 5, 1), ValueError, r"logits must have shape \(B, C\); got \(3, 5, 1\)"),
    ("logits", ones(3, 1), ValueError, r"logits must have at least 2 classes; got shape \(3, 1\)"),
    ("logits", ones(3, 0), ValueError, r"logits must have at least 2 classes; got shape \(3, 0\)"),
    ("logits", sparse(3, 5), TypeError, "logits must be a dense tensor; got layout torch.sparse_coo"),
]
LABELS = [
    ("labels", constant([0, 1, 2]), TypeError, "labels must be an int64 tensor .*; got list"),
    ("labels", ones(3, dtype=torch.int32), TypeError, "labels must be .*int64.*; got torch.int32"),
    ("labels", ones(3, dtype=torch.bool), TypeError, "labels must be .*int64.*; got torch.bool"),
    ("labels", ones(4, dtype=torch.int64), ValueError, r"labels must have shape \(3,\).*; got \(4,\)"),
    ("labels", ones(1, dtype=torch.int64), ValueError, r"labels must have shape \(3,\).*; got \(1,\)"),
    ("labels", ones(dtype=torch.int64), ValueError, r"labels must have shape \(3,\).*; got \(\)"),
    ("labels", ones(3, 1, dtype=torch.int64), ValueError, r"labels must have shape \(3,\).*; got \(3, 1\)"),
    ("labels", elsewhere(3, dtype=torch.int64), ValueError, "labels must be on .*, as logits is; got meta"),
    ("labels", sparse(3, dtype=torch.int64), TypeError, "labels must be a dense tensor; got layout torch.sparse_coo"),
]
HARD_LABELS = [("labels", ones(3), TypeError, "labels must be int64; got torch.float32")]
RULE = [
    ("beta", constant(0.0), ValueError, "beta must be positive; got 0.0"),
    ("beta", constant(-1), ValueError, "beta must be positive; got -1"),
    ("beta", constant(NAN), ValueError, "beta must be finite; got nan"),
    ("beta", constant(INF), ValueError, "beta must be finite; got inf"),
    ("beta", constant("9"), TypeError, "beta must be a number; got str"),
    ("beta", constant(True), TypeError, "beta must be a number; got bool"),
    ("beta", ones(), TypeError, "beta must be a number; got Tensor"),
    ("gamma", constant(0), ValueError, "gamma must be positive; got 0"),
    ("gamma", constant(-0.01), ValueError, "gamma must be positive; got -0.01"),
    ("gamma", constant(NAN), ValueError, "gamma must be finite; got nan"),
    ("gamma", constant(INF), ValueError, "gamma must be finite; got inf"),
    ("gamma", constant(None), TypeError, "gamma must be a number; got NoneType"),
    ("top_k", constant(0), ValueError, "top_k must be at least 1; got 0"),
    ("top_k", constant(-3), ValueError, "top_k must be at least 1; got -3"),
    ("top_k", constant(2.0), TypeError, "top_k must be an int or None; got float"),
    ("top_k", constant(True), TypeError, "top_k must be an int or None; got bool"),
    ("label_scheme", constant("mane"), ValueError, "label_scheme must be one of 'main', 'sup'.*; got 'mane'"),
    ("label_scheme", constant(None), ValueError, "label_scheme must be one of 'main', 'sup'.*; got None"),
]
TARGET = [
    ("target", constant("most"), ValueError, "target must be one of 'mc', .*; got 'most'"),
    ("target", constant("given"), ValueError, "target must be one of 'mc', .*; got 'given'"),
    ("target", constant(3), ValueError, "target must be one of 'mc', .*; got 3"),
    ("target", constant(None), ValueError, "target must be one of 'mc', .*; got None"),
    ("target", constant(np.array([0, 1, 2])), ValueError, "target must be one of 'mc', .*; got array"),
    ("target", ones(3), TypeError, "target must be int64; got torch.float32"),
    ("target", ones(2, dtype=torch.int64), ValueError, r"target must have shape \(3,\).*; got \(2,\)"),
    ("target", elsewhere(3, dtype=torch.int64), ValueError, "target must be on .*; got meta"),
]
LABEL_OUT = [
    ("out", constant([1.0]), TypeError, "out must be a tensor; got list"),
    ("out", ones(3, 4), ValueError, r"out must have shape \(3, 5\); got \(3, 4\)"),
    ("out", ones(3, 5, dtype=torch.float16), TypeError, "out must be torch.float32; got torch.float16"),
    ("out", ones(3, 5, dtype=torch.float64), TypeError, "out must be torch.float32; got torch.float64"),
    ("out", ones(3, 5, grad=True), ValueError, "out must not require grad"),
    ("out", elsewhere(3, 5), ValueError, "out must be on .*; got meta"),
    ("out", overlapping(3, 5), ValueError, "out must not share memory between its elements"),
    ("out", sparse(3, 5), TypeError, "out must be a dense tensor; got layout torch.sparse_coo"),
]
SOFT = [
    ("labels", ones(3, 4), ValueError, r"labels must have the shape of logits, \(3, 5\); got \(3, 4\)"),
    ("labels", ones(3), ValueError, r"labels must have the shape of logits, \(3, 5\); got \(3,\)"),
    ("labels", elsewhere(3, 5), ValueError, "labels must be on .*, as logits is; got meta"),
    ("labels", sparse(3, 5), TypeError, "labels must be a dense tensor; got layout torch.sparse_coo"),
    ("reduction", constant("average"), ValueError, "reduction must be one of 'mean', 'sum', 'none'; got 'average'"),
    ("reduction", constant(None), ValueError, "reduction must be one of 'mean', 'sum', 'none'; got None"),
    ("label_smoothing", constant(1.0), ValueError, r"label_smoothing must lie in \[0, 1\); got 1.0"),
    ("label_smoothing", constant(1), ValueError, r"label_smoothing must lie in \[0, 1\); got 1.0"),
    ("label_smoothing", constant(-1e-9), ValueError, r"label_smoothing must lie in \[0, 1\); got -1e-09"),
    ("label_smoothing", constant(NAN), ValueError, "label_smoothing must be finite; got nan"),
    ("label_smoothing", constant(INF), ValueError, "label_smoothing must be finite; got inf"),
    ("label_smoothing", constant(False), TypeError, "label_smoothing must be a number; got bool"),
    ("label_smoothing", constant("0.1"), TypeError, "label_smoothing must be a number; got str"),
    ("label_smoothing", constant(None), TypeError, "label_smoothing must be a number; got NoneType"),
    ("label_smoothing", ones(), TypeError, "label_smoothing must be a number; got Tensor"),
]
NO_SCHEME = [("label_scheme", constant("none"), ValueError, "label_scheme must be one of 'main', 'sup'; got 'none'")]

OPERATORS = {
    "joint_gradient": Operator(
        rmcla_fast.joint_gradient, row_arguments, LOGITS + LABELS + HARD_LABELS + RULE + TARGET + BACKEND
    ),
    "joint_objective": Operator(
        rmcla_fast.joint_objective, row_arguments, LOGITS + LABELS + HARD_LABELS + RULE + TARGET + BACKEND
    ),
    "redistribute_labels": Operator(
        rmcla_fast.redistribute_labels,
        row_arguments,
        LOGITS + LABELS + HARD_LABELS + RULE + LABEL_OUT + NO_SCHEME + BACKEND,
    ),
    "soft_cross_entropy": Operator(rmcla_fast.soft_cross_entropy, row_arguments, LOGITS + LABELS + SOFT + BACKEND),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_bad_argument_raises_one_sentence_that_names_it(backend: Backend, name: str) -> None:
    assert_bad_values_raise_one_sentence(backend, OPERATORS[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_the_table_has_every_argument(name: str) -> None:
    assert_every_argument_has_a_row(OPERATORS[name])


def direct_calls(device: torch.device) -> list[Direct]:
    """Return direct calls of registered operators with arguments that the public functions do not accept."""
    z, c = torch.randn(3, 5, device=device), torch.tensor([0, 4, 2], device=device)
    rule = (9.0, 0.01, None, "main")
    return [
        ("joint_gradient", (z[0], c, "mc", None, *rule), {}),
        ("joint_gradient", (z[:, :1], c, "mc", None, *rule), {}),
        ("joint_gradient", (z.long(), c, "mc", None, *rule), {}),
        ("joint_gradient", (z, c[:2], "mc", None, *rule), {}),
        ("joint_gradient", (z, c.int(), "mc", None, *rule), {}),
        ("joint_gradient", (z, c, "given", None, *rule), {}),
        ("joint_gradient", (z, c, "given", c[:2], *rule), {}),
        ("joint_gradient", (z, c, "most", None, *rule), {}),
        ("joint_gradient", (z, c, "mc", None, 9.0, 0.01, 0, "main"), {}),
        ("joint_gradient", (z, c, "mc", None, 9.0, 0.01, None, "mane"), {}),
        ("redistribute_labels", (z, c[:2], *rule), {}),
        ("redistribute_labels", (z, c, 9.0, 0.01, None, "none"), {}),
        ("redistribute_labels", (z, c, *rule), {"out": torch.empty(3, 4, device=device)}),
        ("redistribute_labels", (z, c, *rule), {"out": torch.empty(3, 5, device=device, dtype=torch.float64)}),
        ("soft_cross_entropy", (z, c[:2], "mean", False, 0.0), {}),
        ("soft_cross_entropy", (z, z[:2], "mean", False, 0.0), {}),
        ("soft_cross_entropy", (z, c, "average", False, 0.0), {}),
        *(("soft_cross_entropy", (z, c, "mean", False, smoothing), {}) for smoothing in (-0.1, 1.0, NAN, INF)),
        *(("soft_cross_entropy", (z, z, "mean", True, smoothing), {}) for smoothing in (-1e-9, 1.0, NAN)),
    ]


def test_kernels_check_the_arguments_of_direct_calls(backend: Backend) -> None:
    assert_kernels_refuse(backend, direct_calls(backend.device))
