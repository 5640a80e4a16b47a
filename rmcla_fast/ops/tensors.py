"""Conversions that all operators share: bytes to [0, 1], memory layouts, and the dtype of the arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return images in [0, 1]: uint8 becomes value / 255, correctly rounded on every device; floats keep their values.

    On CUDA, and under `torch.compile`, `images / 255` multiplies by the reciprocal of 255, which is wrong in the last
    bit for 126 of the 256 bytes in float32. Here the reciprocal gives a first quotient, and its exact remainder
    corrects it. Every step is exact or rounded as IEEE 754 says, and nothing is divided.

    Args:
        images: any shape and layout, uint8 or float.
        dtype: the result's dtype, float32 or float64. None keeps a float image's dtype, and gives float32 for uint8.
    """
    if images.dtype != torch.uint8:
        return images if dtype is None else images.to(dtype)
    values = images.to(dtype or torch.float32)
    quotient = values * (1 / 255)
    # values - 255 * quotient, as (values - 256 * quotient) + quotient: 256 * quotient is exact.
    remainder = torch.sub(values, quotient, alpha=256).add_(quotient)
    return quotient.add_(remainder, alpha=1 / 255)


def clipped(images: Tensor) -> Tensor:
    """Return images in [0, 1] as floats: uint8 means value / 255, and floats outside [0, 1] are clipped; NaN stays."""
    return to_unit(images) if images.dtype == torch.uint8 else images.clamp(0, 1)


def with_own_strides(images: Tensor) -> Tensor:
    """Return the images with the strides that a new tensor of their shape and memory layout would have.

    A dimension of size 1 may have any stride, as in `array[:, None]`. Convolutions choose their layout by the strides,
    and compiled code is specialised to them.

    Args:
        images: any shape; images that are neither contiguous nor channels_last are returned unchanged.
    """
    if 1 in images.shape:
        for form in (torch.contiguous_format, torch.channels_last):
            if images.is_contiguous(memory_format=form):
                place = torch.empty(images.shape, device="meta", memory_format=form)
                return images.as_strided(images.shape, place.stride())
    return images


def as_dense(images: Tensor) -> Tensor:
    """Return the images if their memory has no gaps or overlaps, in any order of dimensions; else a contiguous copy."""
    return images if torch.empty_like(images).stride() == images.stride() else images.contiguous()


def as_dense_images(images: Tensor) -> Tensor:
    """Return a batch of images that follow one another in memory, each of them without gaps or overlaps.

    Each image has its elements in the order in which `as_dense` has them for that image alone. A batch that is of this
    form is returned itself.
    """
    if images.shape[0] < 2 or images.numel() == 0:
        return as_dense(images)
    first = images[0]
    if as_dense(first) is not first:
        return images.contiguous()
    strides = (first.numel(), *images.stride()[1:])
    if images.stride() == strides:
        return images
    return torch.empty_strided(images.shape, strides, dtype=images.dtype, device=images.device).copy_(images)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which an operator computes on `tensor`: float64 for float64, float32 for every other."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def finite_rows(z: Tensor) -> Tensor:
    """Return (B,) bool: which rows of logits (B, C) have no NaN, and no value that counts as infinite.

    A magnitude of 2**64 or more does (2**960 in float64). Below it no sum over a row overflows for any number of
    classes, beta and gamma, in any order of its terms.
    """
    return (z.abs() < (2.0**960 if z.dtype == torch.float64 else 2.0**64)).all(1)
