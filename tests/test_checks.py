"""The checks that the operators share: what they accept at their bounds, and the whole sentence of each error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from rmcla_fast.ops import checks

IMAGES = torch.zeros(2, 3, 4, 4)
LOGITS = torch.zeros(2, 3)
RNG = torch.zeros(2, dtype=torch.int64)
random_states = functools.partial(checks.random_state, per_image=True)
LARGEST = torch.finfo(torch.float64).max


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)], ids=lambda x: type(x).__name__
)
def test_a_number_of_any_kind_becomes_a_float(value: Any) -> None:
    assert checks.number("beta", value) == 0.5
    assert type(checks.number("beta", value)) is float


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 0.0, 7, -7, np.float32(3e38)])
def test_every_finite_number_is_accepted(value: Any) -> None:
    assert checks.number("beta", value) == float(value)
    assert type(checks.number("beta", value)) is float


@pytest.mark.parametrize("value", [float("inf"), float("nan"), np.float32("inf"), np.float32("nan"), 10**400])
def test_a_number_that_is_not_finite_is_an_error(value: Any) -> None:
    for signed in (value, -value):
        with pytest.raises(ValueError, match=f"^beta must be finite; got {signed}$"):
            checks.number("beta", signed)


def test_bounds_of_numbers() -> None:
    assert checks.positive("beta", 1e-300) == 1e-300
    assert checks.positive("beta", 1) == 1.0
    assert checks.not_negative("epsilon", 0) == 0.0
    assert checks.not_negative("epsilon", 2) == 2.0
    assert checks.pixel_range(0, 0) == (0.0, 0.0)
    assert checks.pixel_range(-1, np.float32(2)) == (-1.0, 2.0)
    for value in (None, 1, 10):
        checks.top_k(value)


def test_every_shape_of_a_value_per_image_is_accepted() -> None:
    for value in (torch.tensor(0.5), torch.ones(2)):
        assert checks.per_image("epsilon", value, IMAGES) is value
    scalar = torch.tensor(0.5)
    assert checks.per_image("epsilon", scalar, torch.tensor(1.0)) is scalar
    one = torch.ones(1)
    assert checks.per_image("epsilon", one, IMAGES[:1]) is one
    assert checks.per_image("epsilon", torch.ones(0), IMAGES[:0]).shape == (0,)


def test_every_shape_of_a_random_state_is_accepted() -> None:
    checks.random_state(RNG, IMAGES, "images")
    for batch in (0, 1, 2):
        random_states(RNG, IMAGES[:batch], "images")
        random_states(RNG.expand(batch, 2), IMAGES[:batch], "images")
    random_states(RNG, torch.tensor(1.0), "images")


def test_outputs_whose_elements_have_memory_of_their_own_are_accepted() -> None:
    def accept(out: torch.Tensor) -> None:
        checks.output(out, out.shape, out.dtype, IMAGES, "images")

    accept(torch.empty(2, 3))
    accept(torch.empty(3, 2).T)
    accept(torch.empty(3).as_strided((1, 3), (0, 1)))  # stride 0 in a dimension of size 1
    accept(torch.empty(1, 3).expand(0, 3))
    accept(torch.empty(0, 1).expand(0, 5))
    accept(torch.empty(()))


@pytest.mark.parametrize("shape", [(2, 3), (1, 2)])
def test_an_output_whose_elements_share_memory_is_an_error(shape: tuple[int, ...]) -> None:
    out = torch.empty(1).expand(shape)
    with pytest.raises(ValueError, match=r"^out must not share memory between its elements; got strides \((0|1), 0\)$"):
        checks.output(out, out.shape, out.dtype, IMAGES, "images")


def output(out: Any, shape: tuple[int, ...] = (2, 3), dtype: torch.dtype = torch.float32) -> None:
    checks.output(out, torch.Size(shape), dtype, IMAGES, "images")


META = torch.empty(2, device="meta")
SENTENCES: list[tuple[Callable[..., Any], tuple[Any, ...], type[Exception], str]] = [
    (checks.floating, ("grad", 1), TypeError, "grad must be a tensor; got int"),
    (
        *(checks.floating, ("grad", RNG), TypeError),
        "grad must be float32, float64, float16 or bfloat16; got torch.int64",
    ),
    (
        *(lambda: checks.floating("images", RNG, uint8=True), (), TypeError),
        "images must be uint8, float32, float64, float16 or bfloat16; got torch.int64",
    ),
    (
        *(checks.dense, ("grad", LOGITS.to_sparse()), TypeError),
        "grad must be a dense tensor; got layout torch.sparse_coo",
    ),
    (checks.logits, (IMAGES,), ValueError, "logits must have shape (B, C); got (2, 3, 4, 4)"),
    (checks.logits, (torch.zeros(2, 1),), ValueError, "logits must have at least 2 classes; got shape (2, 1)"),
    (
        *(checks.class_indices, ("target", [0, 1], LOGITS), TypeError),
        "target must be an int64 tensor of shape (2,); got list",
    ),
    (checks.class_indices, ("target", torch.zeros(2), LOGITS), TypeError, "target must be int64; got torch.float32"),
    (
        *(checks.class_indices, ("target", torch.zeros(3, dtype=torch.int64), LOGITS), ValueError),
        "target must have shape (2,), one value per row of logits; got (3,)",
    ),
    (
        *(checks.class_indices, ("target", META.long(), LOGITS), ValueError),
        "target must be on cpu, as logits is; got meta",
    ),
    (checks.same_device, ("grad", META, LOGITS, "images"), ValueError, "grad must be on cpu, as images is; got meta"),
    (
        *(checks.same_shape, ("grad", RNG, LOGITS, "images"), ValueError),
        "grad must have the shape of images, (2, 3); got (2,)",
    ),
    (checks.number, ("beta", "1"), TypeError, "beta must be a number; got str"),
    (checks.number, ("beta", 1j), TypeError, "beta must be a number; got complex"),
    (checks.number, ("beta", True), TypeError, "beta must be a number; got bool"),
    (checks.positive, ("beta", 0), ValueError, "beta must be positive; got 0.0"),
    (checks.positive, ("beta", None), TypeError, "beta must be a number; got NoneType"),
    (checks.not_negative, ("epsilon", -1), ValueError, "epsilon must not be negative; got -1.0"),
    (checks.not_negative, ("epsilon", None), TypeError, "epsilon must be a number; got NoneType"),
    (checks.pixel_range, (1, 0.5), ValueError, "lower must not exceed upper; got lower 1.0 and upper 0.5"),
    (checks.pixel_range, (None, 1), TypeError, "lower must be a number; got NoneType"),
    (checks.pixel_range, (0, None), TypeError, "upper must be a number; got NoneType"),
    (checks.top_k, (True,), TypeError, "top_k must be an int or None; got bool"),
    (checks.top_k, (1.0,), TypeError, "top_k must be an int or None; got float"),
    (checks.top_k, (0,), ValueError, "top_k must be at least 1; got 0"),
    (
        *(checks.per_image, ("epsilon", torch.ones(2).double(), IMAGES), TypeError),
        "epsilon must be a float or a float32 tensor; got a torch.float64 tensor",
    ),
    (
        *(checks.per_image, ("epsilon", torch.ones(2, 1), IMAGES), ValueError),
        "epsilon must have shape () or (2,), one value per image; got (2, 1)",
    ),
    (
        *(checks.per_image, ("epsilon", torch.ones(2), torch.tensor(1.0)), ValueError),
        "epsilon must have shape () or (1,), one value per image; got (2,)",
    ),
    (
        *(checks.per_image, ("epsilon", torch.ones(1), torch.tensor(1.0)), ValueError),
        "epsilon must have shape () or (1,), one value per image; got (1,)",
    ),
    (checks.per_image, ("epsilon", META, IMAGES), ValueError, "epsilon must be on cpu, as images is; got meta"),
    (
        *(checks.random_state, ((0, 1), IMAGES, "images"), TypeError),
        "rng must be an int64 tensor (seed, step); got tuple",
    ),
    (
        *(checks.random_state, (RNG.int(), IMAGES, "images"), TypeError),
        "rng must be an int64 tensor (seed, step); got torch.int32",
    ),
    (
        *(checks.random_state, (RNG[:1], IMAGES, "images"), ValueError),
        "rng must have shape (2,), seed and step; got (1,)",
    ),
    (
        *(checks.random_state, (RNG.expand(2, 2), IMAGES, "images"), ValueError),
        "rng must have shape (2,), seed and step; got (2, 2)",
    ),
    (
        *(random_states, (RNG.expand(4, 2), IMAGES, "images"), ValueError),
        "rng must have shape (2,) or (2, 2), seed and step; got (4, 2)",
    ),
    (
        *(random_states, (RNG.expand(2, 2, 2), IMAGES, "images"), ValueError),
        "rng must have shape (2,) or (2, 2), seed and step; got (2, 2, 2)",
    ),
    (
        *(random_states, (RNG.expand(1, 2), torch.tensor(1.0), "images"), ValueError),
        "rng must have shape (2,), seed and step; got (1, 2)",
    ),
    (
        *(random_states, (RNG.expand(2, 2).int(), IMAGES, "images"), TypeError),
        "rng must be an int64 tensor (seed, step); got torch.int32",
    ),
    (checks.random_state, (META.long(), IMAGES, "data"), ValueError, "rng must be on cpu, as data is; got meta"),
    (checks.boolean, ("clip", 1), TypeError, "clip must be a bool; got int"),
    (output, ([],), TypeError, "out must be a tensor; got list"),
    (output, (torch.empty(3, 2),), ValueError, "out must have shape (2, 3); got (3, 2)"),
    (output, (LOGITS.double(),), TypeError, "out must be torch.float32; got torch.float64"),
    (output, (LOGITS.to_sparse(),), TypeError, "out must be a dense tensor; got layout torch.sparse_coo"),
    (output, (LOGITS.to("meta"),), ValueError, "out must be on cpu, as images is; got meta"),
    (output, (LOGITS.clone().requires_grad_(),), ValueError, "out must not require grad; pass out.detach()"),
]


@pytest.mark.parametrize(("check", "arguments", "error", "sentence"), SENTENCES, ids=[row[3] for row in SENTENCES])
def test_an_error_is_this_sentence(
    check: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as raised:
        check(*arguments)
    assert str(raised.value) == sentence
