"""Bad arguments of the operators on images: every backend raises the same sentence, which names the argument."""

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

SHAPE = (2, 3, 4, 4)


def step_arguments(device: torch.device) -> dict[str, Any]:
    images = {name: torch.rand(2, 3, 4, 4, device=device) for name in ("images", "origin", "grad")}
    return {**images, "step_size": 0.1, "epsilon": 0.1}


def start_arguments(device: torch.device) -> dict[str, Any]:
    rng = torch.tensor([0, 1], device=device)
    return {"images": torch.rand(2, 3, 4, 4, device=device), "epsilon": 0.1, "rng": rng}


def augment_arguments(device: torch.device) -> dict[str, Any]:
    dataset = torch.zeros(5, 3, 4, 4, dtype=torch.uint8, device=device)
    tensors = {"index": torch.tensor([4, 0], device=device), "rng": torch.tensor([0, 1], device=device)}
    return {"dataset": dataset, **tensors}


IMAGE_OUT = [
    ("out", constant(5), TypeError, "out must be a tensor; got int"),
    ("out", ones(2, 3, 4, 5), ValueError, r"out must have shape \(2, 3, 4, 4\); got \(2, 3, 4, 5\)"),
    ("out", ones(*SHAPE, dtype=torch.bfloat16), TypeError, "out must be torch.float32; got torch.bfloat16"),
    ("out", ones(*SHAPE, grad=True), ValueError, "out must not require grad"),
    ("out", elsewhere(*SHAPE), ValueError, "out must be on .*; got meta"),
    ("out", overlapping(*SHAPE), ValueError, "out must not share memory between its elements"),
    ("out", sparse(*SHAPE), TypeError, "out must be a dense tensor; got layout torch.sparse_coo"),
]
EPSILON = [
    ("epsilon", constant(-0.1), ValueError, "epsilon must not be negative; got -0.1"),
    ("epsilon", constant(NAN), ValueError, "epsilon must be finite; got nan"),
    ("epsilon", constant(INF), ValueError, "epsilon must be finite; got inf"),
    ("epsilon", constant("8/255"), TypeError, "epsilon must be a number; got str"),
    ("epsilon", constant(None), TypeError, "epsilon must be a number; got NoneType"),
    ("epsilon", constant(np.float32(INF)), ValueError, "epsilon must be finite; got inf"),
    ("epsilon", constant(10**400), ValueError, "epsilon must be finite; got 1000"),
    ("epsilon", ones(2, dtype=torch.float64), TypeError, "epsilon must be a float or a float32 tensor; .*float64"),
    ("epsilon", ones(3), ValueError, r"epsilon must have shape \(\) or \(2,\), one value per image; got \(3,\)"),
    ("epsilon", ones(1), ValueError, r"epsilon must have shape \(\) or \(2,\), one value per image; got \(1,\)"),
    ("epsilon", ones(2, 1, 1, 1), ValueError, r"epsilon must have shape \(\) or \(2,\).*; got \(2, 1, 1, 1\)"),
    ("epsilon", elsewhere(2), ValueError, "epsilon must be on .*, as images is; got meta"),
]
RANGE = [
    ("lower", constant(NAN), ValueError, "lower must be finite; got nan"),
    ("lower", constant(2.0), ValueError, "lower must not exceed upper; got lower 2.0 and upper 1.0"),
    ("lower", constant(None), TypeError, "lower must be a number; got NoneType"),
    ("upper", constant(INF), ValueError, "upper must be finite; got inf"),
    ("upper", constant(ones), TypeError, "upper must be a number; got function"),
]
IMAGES = [
    ("images", constant(0.5), TypeError, "images must be a tensor; got float"),
    ("images", ones(*SHAPE, dtype=torch.int64), TypeError, "images must be .*float32, .*; got torch.int64"),
    ("images", ones(*SHAPE, dtype=torch.bool), TypeError, "images must be .*float32, .*; got torch.bool"),
    ("images", sparse(*SHAPE), TypeError, "images must be a dense tensor; got layout torch.sparse_coo"),
]
MASK = [
    ("mask", constant(0.5), TypeError, "mask must be a bool or float tensor, or None; got float"),
    ("mask", constant([True]), TypeError, "mask must be a bool or float tensor, or None; got list"),
    ("mask", ones(4, 4, dtype=torch.uint8), TypeError, "mask must be bool, float32, .*; got torch.uint8"),
    ("mask", ones(4, 4, dtype=torch.int64), TypeError, "mask must be bool, float32, .*; got torch.int64"),
    ("mask", sparse(4, 4), TypeError, "mask must be a dense tensor; got layout torch.sparse_coo"),
    ("mask", ones(3), ValueError, r"mask must broadcast to the shape of images, \(2, 3, 4, 4\); got \(3,\)"),
    ("mask", ones(3, 3, 4, 4), ValueError, r"mask must broadcast to .*, \(2, 3, 4, 4\); got \(3, 3, 4, 4\)"),
    ("mask", ones(1, 2, 3, 4, 4), ValueError, r"mask must broadcast to .*; got \(1, 2, 3, 4, 4\)"),
    ("mask", ones(0, 4), ValueError, r"mask must broadcast to .*; got \(0, 4\)"),
    ("mask", elsewhere(4, 4), ValueError, "mask must be on .*, as images is; got meta"),
]
PERTURB = [
    ("images", ones(*SHAPE, dtype=torch.uint8), TypeError, "images must be float32, .*; got torch.uint8"),
    ("origin", constant(None), TypeError, "origin must be a tensor; got NoneType"),
    ("origin", ones(*SHAPE, dtype=torch.int32), TypeError, "origin must be uint8, float32, .*; got torch.int32"),
    (
        "origin",
        ones(2, 3, 4, 1),
        ValueError,
        r"origin must have the shape of images, \(2, 3, 4, 4\); got \(2, 3, 4, 1\)",
    ),
    ("origin", elsewhere(*SHAPE), ValueError, "origin must be on .*, as images is; got meta"),
    ("grad", constant(None), TypeError, "grad must be a tensor; got NoneType"),
    ("grad", ones(*SHAPE, dtype=torch.uint8), TypeError, "grad must be float32, .*; got torch.uint8"),
    ("grad", ones(1, 3, 4, 4), ValueError, r"grad must have the shape of images, .*; got \(1, 3, 4, 4\)"),
    ("grad", elsewhere(*SHAPE), ValueError, "grad must be on .*, as images is; got meta"),
    ("grad", sparse(*SHAPE), TypeError, "grad must be a dense tensor; got layout torch.sparse_coo"),
    ("step_size", constant(NAN), ValueError, "step_size must be finite; got nan"),
    ("step_size", constant(-INF), ValueError, "step_size must be finite; got -inf"),
    ("step_size", constant("1"), TypeError, "step_size must be a number; got str"),
    ("step_size", ones(2, dtype=torch.float16), TypeError, "step_size must be a float or a float32 tensor; .*float16"),
    ("step_size", ones(3), ValueError, r"step_size must have shape \(\) or \(2,\).*; got \(3,\)"),
    ("step_size", elsewhere(), ValueError, "step_size must be on .*, as images is; got meta"),
]
RNG = [
    ("rng", constant((0, 1)), TypeError, r"rng must be an int64 tensor \(seed, step\); got tuple"),
    ("rng", constant(None), TypeError, "rng must be an int64 tensor .*; got NoneType"),
    ("rng", ones(2, dtype=torch.int32), TypeError, "rng must be an int64 tensor .*; got torch.int32"),
    ("rng", ones(3, dtype=torch.int64), ValueError, r"rng must have shape \(2,\).*; got \(3,\)"),
    ("rng", ones(2, 1, dtype=torch.int64), ValueError, r"rng must have shape \(2,\).*; got \(2, 1\)"),
    ("rng", elsewhere(2, dtype=torch.int64), ValueError, "rng must be on .*, as (images|dataset) is; got meta"),
]
START = [
    *RNG,
    ("rng", ones(3, 2, dtype=torch.int64), ValueError, r"rng must have shape \(2,\) or \(2, 2\), .*; got \(3, 2\)"),
    ("rng", ones(2, 3, dtype=torch.int64), ValueError, r"rng must have shape \(2,\) or \(2, 2\), .*; got \(2, 3\)"),
    ("rng", ones(2, 2, dtype=torch.int32), TypeError, "rng must be an int64 tensor .*; got torch.int32"),
    ("rng", elsewhere(2, 2, dtype=torch.int64), ValueError, "rng must be on .*, as images is; got meta"),
    ("clip", constant(1), TypeError, "clip must be a bool; got int"),
]
AUGMENT = [
    ("rng", ones(2, 2, dtype=torch.int64), ValueError, r"rng must have shape \(2,\), seed and step; got \(2, 2\)"),
    ("dataset", constant([1, 2]), TypeError, "dataset must be a uint8 tensor; got list"),
    ("dataset", ones(5, 3, 4, 4), TypeError, "dataset must be a uint8 tensor; got torch.float32"),
    ("dataset", ones(3, 4, 4, dtype=torch.uint8), ValueError, r"dataset must be contiguous \(N, C, H, W\); got \(3,"),
    (
        "dataset",
        lambda device: torch.zeros(5, 4, 4, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2),
        ValueError,
        r"dataset must be contiguous \(N, C, H, W\); got \(5, 3, 4, 4\), \(48, 1, 12, 3\)",
    ),
    ("index", constant([0, 1]), TypeError, r"index must be an int64 tensor of shape \(B,\); got list"),
    ("index", ones(2, dtype=torch.int32), TypeError, "index must be an int64 tensor .*; got torch.int32"),
    ("index", ones(2, dtype=torch.bool), TypeError, "index must be an int64 tensor .*; got torch.bool"),
    ("index", ones(2, 1, dtype=torch.int64), ValueError, r"index must have shape \(B,\); got \(2, 1\)"),
    ("index", ones(dtype=torch.int64), ValueError, r"index must have shape \(B,\); got \(\)"),
    ("index", elsewhere(2, dtype=torch.int64), ValueError, "index must be on .*, as dataset is; got meta"),
    ("padding", constant(-1), ValueError, r"padding must lie in \[0, 1073741824\); got -1"),
    ("padding", constant(2**30), ValueError, r"padding must lie in \[0, 1073741824\); got 1073741824"),
    ("padding", constant(4.0), TypeError, "padding must be an int; got float"),
    ("padding", constant(True), TypeError, "padding must be an int; got bool"),
    ("flip", constant(1), TypeError, "flip must be a bool; got int"),
    ("fill", constant(-1), ValueError, r"fill must lie in \[0, 256\); got -1"),
    ("fill", constant(256), ValueError, r"fill must lie in \[0, 256\); got 256"),
    ("fill", constant(0.5), TypeError, "fill must be an int; got float"),
    ("fill", constant("0"), TypeError, "fill must be an int; got str"),
    ("memory_format", constant(torch.preserve_format), ValueError, "memory_format must be contiguous_format or .*"),
    ("memory_format", constant(None), ValueError, "memory_format must be contiguous_format or .*; got None"),
]

OPERATORS = {
    "perturb_step": Operator(
        rmcla_fast.perturb_step, step_arguments, IMAGES + PERTURB + MASK + EPSILON + RANGE + IMAGE_OUT + BACKEND
    ),
    "random_start": Operator(
        rmcla_fast.random_start, start_arguments, IMAGES + START + MASK + EPSILON + RANGE + IMAGE_OUT + BACKEND
    ),
    "augment": Operator(rmcla_fast.augment, augment_arguments, AUGMENT + RNG + BACKEND),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_bad_argument_raises_one_sentence_that_names_it(backend: Backend, name: str) -> None:
    assert_bad_values_raise_one_sentence(backend, OPERATORS[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_the_table_has_every_argument(name: str) -> None:
    assert_every_argument_has_a_row(OPERATORS[name])


def test_a_bad_number_is_an_error_in_compiled_code_too(backend: Backend) -> None:
    """`torch.compile` traces the checks and does not skip them."""
    function = torch.compile(rmcla_fast.perturb_step, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="epsilon must not be negative"):
        function(**{**step_arguments(backend.device), "epsilon": -0.5, "backend": backend.name})


def direct_calls(device: torch.device) -> list[Direct]:
    """Return direct calls of registered operators with arguments that the public functions do not accept."""
    x, rng = torch.rand(2, 3, 4, 4, device=device), torch.tensor([0, 1], device=device)
    bounds = (0.0, 1.0)
    two, three = torch.ones(2, device=device), torch.ones(3, device=device)
    pixels, index = (x * 255).byte(), torch.tensor([0, 0], device=device)
    crop = (4, True, 128, False)
    return [
        ("perturb_step", (x, x[:1], x, 0.1, None, 0.1, None, *bounds), {}),
        ("perturb_step", (x, x, x[:, :1], 0.1, None, 0.1, None, *bounds), {}),
        ("perturb_step", (x, x, x, 0.1, three, 0.1, None, *bounds), {}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, two.double(), *bounds), {}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, None, *bounds), {"out": torch.empty(1, 3, 4, 4, device=device)}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, None, *bounds), {"out": torch.empty_like(x, dtype=torch.float16)}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, None, *bounds, x[:, :2]), {}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, None, *bounds, x[None]), {}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, None, *bounds, x.byte()), {}),
        ("perturb_step", (x, x, x, 0.1, None, 0.1, None, *bounds, three), {"out": torch.empty_like(x)}),
        ("random_start", (x, 0.1, None, rng, *bounds, False, three), {}),
        ("random_start", (x, 0.1, None, rng, *bounds, False, x[None]), {}),
        ("random_start", (x, 0.1, None, rng, *bounds, False, x.long()), {}),
        ("random_start", (x, 0.1, None, rng, *bounds, False, x[:, :2]), {"out": torch.empty_like(x)}),
        ("random_start", (x, 0.1, three, rng, *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng[:1], *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng.int(), *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng.expand(3, 2), *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng.expand(2, 2)[:, :1], *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng.expand(2, 2, 2), *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng[0], *bounds, False), {}),
        ("random_start", (x[0, 0, 0, 0], 0.1, None, rng[None], *bounds, False), {}),
        ("random_start", (x, 0.1, None, rng.expand(3, 2), *bounds, False), {"out": torch.empty_like(x)}),
        ("random_start", (x, 0.1, None, rng, *bounds, False), {"out": torch.empty(1, 3, 4, 4, device=device)}),
        ("augment", (x, index, rng, *crop), {}),
        ("augment", (pixels[0], index, rng, *crop), {}),
        ("augment", (pixels.mT, index, rng, *crop), {}),
        ("augment", (pixels, index.int(), rng, *crop), {}),
        ("augment", (pixels, index[None], rng, *crop), {}),
        ("augment", (pixels, index, rng[:1], *crop), {}),
        ("augment", (pixels, index, rng.int(), *crop), {}),
        ("augment", (pixels, index, rng.expand(2, 2), *crop), {}),
        ("augment", (pixels, index, rng, -1, *crop[1:]), {}),
        ("augment", (pixels, index, rng, 2**30, *crop[1:]), {}),
        ("augment", (pixels, index, rng, 4, True, -1, False), {}),
        ("augment", (pixels, index, rng, 4, True, 256, False), {}),
    ]


def test_kernels_check_the_arguments_of_direct_calls(backend: Backend) -> None:
    assert_kernels_refuse(backend, direct_calls(backend.device))
