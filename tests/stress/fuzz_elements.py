"""Cases of the fuzzer for the operators on elements, whose results have the bits of the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch
from adversarial_inputs import FLOAT_DTYPES, poison_free_memory
from stress.fuzz_images import draw_budget, draw_mask, draw_rng, draw_shape, draw_values, generator_of
from stress.fuzz_memory import Arguments
from tolerances import assert_same_bits
from torch import Tensor

import rmcla_fast
from rmcla_fast.ops.tensors import as_dense, as_dense_images, compute_dtype

NAN = float("nan")
BOUNDS = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (0.1, 0.7), (0.5, 0.5), (-1e30, 1e30), (-1e300, 1e300))


class Target(NamedTuple):
    """What the fuzzer tests: `backend` with tensors on `device`.

    `small` asks for small shapes, since the backend is slow. `checks_labels` says whether a class or an image that does
    not exist, or a value of a mask outside [0, 1], is a ValueError; if not, its row or element is NaN, or its image is
    filled.
    """

    backend: str
    device: torch.device
    small: bool
    checks_labels: bool


def shares_of(mask: Tensor | None, shape: tuple[int, ...], work: torch.dtype) -> tuple[np.ndarray | float, bool]:
    """Return the share of each element, NaN for one outside [0, 1], and whether there is one outside."""
    if mask is None:
        return 1.0, False
    shares = mask.to(work).expand(shape)
    outside = (shares < 0) | (shares > 1)
    return torch.where(outside, NAN, shares).numpy(), bool(outside.any())


def broadcast(value: float | Tensor, dimensions: int) -> np.ndarray | float:
    """Return a float, or the tensor () or (B,) as an array that broadcasts to images with these dimensions."""
    if not isinstance(value, Tensor):
        return value
    return value.numpy().reshape(-1, *[1] * (dimensions - 1)) if value.dim() else value.numpy()


def strides_of_result(images: Tensor) -> tuple[int, ...]:
    return torch.empty_like(as_dense(images)).stride()


def perturb_step(draw: random.Random, target: Target) -> None:
    generator = generator_of(draw)
    shape = draw_shape(draw, target.small)
    dtype, grad_dtype = draw.choice(FLOAT_DTYPES), draw.choice(FLOAT_DTYPES)
    origin_dtype = draw.choice((*FLOAT_DTYPES, dtype, torch.uint8))
    arguments = Arguments(draw, target.device)
    arguments.add("images", draw_values(draw, generator, shape, dtype))
    arguments.add("origin", draw_values(draw, generator, shape, origin_dtype))
    arguments.add("grad", draw_values(draw, generator, shape, grad_dtype, center=0.5))
    budgets = {name: draw_budget(draw, generator, shape) for name in ("step_size", "epsilon")}
    if draw.random() < 0.2 and isinstance(budgets["step_size"], float):
        budgets["step_size"] = -budgets["step_size"]
    for name, value in budgets.items():
        if isinstance(value, Tensor):
            arguments.add(name, value)
    mask = draw_mask(draw, generator, shape)
    if mask is not None:
        arguments.add("mask", mask)
    lower, upper = draw.choice(BOUNDS)
    arguments.build(shape, dtype)
    if draw.random() < 0.1:  # one tensor is two arguments
        name, same = draw.choice((("grad", "images"), ("origin", "images"), ("grad", "origin")))
        if arguments.copies[same].dtype != torch.uint8:
            arguments.tensors[name], arguments.copies[name] = arguments.tensors[same], arguments.copies[same]
    tensors, copies = arguments.tensors, arguments.copies
    images, origin, grad = copies["images"], copies["origin"], copies["grad"]
    work = compute_dtype(images)
    center = origin.numpy() if origin.dtype == torch.uint8 else origin.to(work).numpy()
    step, epsilon = (broadcast(copies.get(name, value), len(shape)) for name, value in budgets.items())
    shares, bad = shares_of(copies.get("mask"), shape, work)
    with np.errstate(all="ignore"):
        rule = step, epsilon, lower, upper, shares
        moved = oracle.perturb_step(images.to(work).numpy(), center, grad.double().numpy(), *rule)
    wanted = torch.from_numpy(np.asarray(moved)).to(dtype)
    strides = strides_of_result(tensors["images"])
    poison_free_memory(wanted.numel(), target.device)

    def call() -> Tensor:
        return rmcla_fast.perturb_step(
            tensors["images"],
            tensors["origin"],
            tensors["grad"],
            **{name: tensors.get(name, value) for name, value in budgets.items()},
            lower=lower,
            upper=upper,
            mask=tensors.get("mask"),
            out=arguments.out,
            backend=target.backend,
        )

    finish_masked(arguments, call, wanted, strides, bad and target.checks_labels)


def finish_masked(
    arguments: Arguments, call: Callable[[], Tensor], wanted: Tensor, strides: tuple[int, ...], raises: bool
) -> None:
    """Check the result of the call, or that it raises an error for the mask and writes nothing."""
    if raises:
        with pytest.raises(ValueError, match="mask must lie in"):
            call()
        arguments.check(out_is_unchanged=True)
    else:
        finish(arguments, call(), wanted, strides)


def finish(arguments: Arguments, result: Tensor, wanted: Tensor, strides: tuple[int, ...]) -> None:
    """Check the bits and the layout of the result, and that nothing else was written."""
    assert_same_bits(result, wanted, "out" if arguments.out is not None else "result")
    arguments.check()
    assert not result.requires_grad
    if arguments.out is None:
        assert result.stride() == strides, f"strides {result.stride()}, expected {strides}"
    else:
        assert result is arguments.out


def noise(images: Tensor, seed: int, step: int) -> np.ndarray:
    """Return 2 u - 1 for every pixel, in the order of memory if the images are dense.

    The oracle's generator computes with an array of blocks as with the integers of one.
    """
    count, seed, step = images.numel(), seed % 2**64, step % 2**64
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    words = oracle.philox4x32((blocks, 0, step % 2**32, 0), (seed % 2**32, seed >> 32))  # type: ignore[arg-type]
    words = np.stack(words, 1).reshape(-1)[:count]
    flat = (2 * ((words >> np.uint64(8)).astype(np.float64) * 2.0**-24) - 1).astype(np.float32)
    dense = torch.empty_like(images).stride() == images.stride()
    order = list(range(images.dim()))
    if dense:
        order.sort(key=lambda dimension: -images.stride(dimension) if images.shape[dimension] > 1 else 0)
    return flat.reshape([images.shape[d] for d in order]).transpose(np.argsort(order)) if order else flat.reshape(())


def random_start(draw: random.Random, target: Target) -> None:
    generator = generator_of(draw)
    shape = draw_shape(draw, target.small)
    dtype = draw.choice((*FLOAT_DTYPES, torch.uint8))
    result_dtype = torch.float32 if dtype == torch.uint8 else dtype
    rng_per_image = bool(shape) and shape[0] > 0 and draw.random() < 0.4
    words = [draw_rng(draw) for _ in range(shape[0] if rng_per_image else 1)]
    arguments = Arguments(draw, target.device)
    arguments.add("images", draw_values(draw, generator, shape, dtype))
    arguments.add("rng", torch.tensor(words if rng_per_image else words[0]), ("gaps", "permuted"))
    budget = draw_budget(draw, generator, shape)
    if isinstance(budget, Tensor):
        arguments.add("epsilon", budget)
    mask = draw_mask(draw, generator, shape)
    if mask is not None:
        arguments.add("mask", mask)
    clip, (lower, upper) = draw.random() < 0.5, draw.choice(BOUNDS)
    arguments.build(shape, result_dtype)
    tensors, copies = arguments.tensors, arguments.copies
    images = copies["images"]
    if rng_per_image:
        alone = zip(tensors["images"].split(1), words, strict=True)
        unit = np.concatenate([noise(image, *row) for image, row in alone])
    else:
        unit = noise(tensors["images"], *words[0])
    kind = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        values = (
            images.numpy().astype(kind) / kind(255)
            if dtype == torch.uint8
            else images.to(compute_dtype(images)).numpy()
        )
        radius = np.asarray(broadcast(copies.get("epsilon", budget), len(shape))).astype(np.float32)
        shares, bad = shares_of(copies.get("mask"), shape, torch.float32)
        radius = np.where(radius >= 0, radius, np.float32(NAN)) * np.asarray(shares, dtype=np.float32)
        start = values + (radius * unit).astype(np.float32)
        if clip:
            start = np.minimum(np.maximum(start, kind(lower)), kind(upper))
    wanted = torch.from_numpy(np.asarray(start)).to(result_dtype)
    dense = as_dense_images(tensors["images"]) if rng_per_image else tensors["images"]
    strides = strides_of_result(dense)
    poison_free_memory(wanted.numel(), target.device)

    def call() -> Tensor:
        return rmcla_fast.random_start(
            tensors["images"],
            tensors.get("epsilon", budget),
            rng=tensors["rng"],
            clip=clip,
            lower=lower,
            upper=upper,
            mask=tensors.get("mask"),
            out=arguments.out,
            backend=target.backend,
        )

    finish_masked(arguments, call, wanted, strides, bad and target.checks_labels)


def augment(draw: random.Random, target: Target) -> None:
    generator = generator_of(draw)
    most = 5 if target.small else draw.choice((9, 9, 9, 40))
    shape = (
        draw.randint(1, 4),
        draw.choice((1, 3, 2, 4)),
        draw.randint(draw.choice((0, 1, 1, 1)), most),
        draw.choice((4, draw.randint(1, most))),
    )
    batch = draw.choice((0, 1, 2, 3, 4, 5, 33))
    words, flip, fill = draw_rng(draw), draw.random() < 0.7, draw.choice((128, 0, 255, 1))
    padding = draw.choice((4, 0, 1, 2, 7, 100, 2**30 - 1))
    memory_format = draw.choice((torch.contiguous_format, torch.channels_last))
    index = torch.randint(0, shape[0], (batch,), generator=generator)
    if batch and draw.random() < 0.05:
        index[draw.randrange(batch)] = draw.choice((-1, shape[0], 2**32, -(2**62)))
    arguments = Arguments(draw, target.device)
    arguments.add("dataset", draw_values(draw, generator, shape, torch.uint8), ("odd",))
    arguments.add("index", index)
    arguments.add("rng", torch.tensor(words), ("gaps",))
    arguments.build()
    index = arguments.copies["index"]
    missing = (index < 0) | (index >= shape[0])
    images = arguments.copies["dataset"].numpy()
    crops = torch.from_numpy(oracle.augment(images, index.clamp(0, shape[0] - 1).tolist(), *words, padding, flip, fill))
    crops[missing] = fill
    wanted = torch.empty(crops.shape, dtype=torch.uint8, memory_format=memory_format).copy_(crops)
    poison_free_memory(wanted.numel(), target.device)

    def call() -> Tensor:
        options = {"padding": padding, "flip": flip, "fill": fill, "memory_format": memory_format}
        return rmcla_fast.augment(**arguments.tensors, **options, backend=target.backend)

    if bool(missing.any()) and target.checks_labels:
        with pytest.raises(ValueError, match="index must lie in"):
            call()
        arguments.check()
        return
    finish(arguments, call(), wanted, wanted.stride())
