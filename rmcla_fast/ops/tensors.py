"""What every operator takes for granted of tensors: the dtype of its arithmetic, layouts, and bytes as [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return images in [0, 1]: uint8 means value / 255, correctly rounded on every device; floats are as they are.

    On CUDA, and under `torch.compile`, `images / 255` multiplies by the reciprocal of 255, which is wrong in the last
    bit for 126 of the 256 bytes in float32. Here the reciprocal gives a first quotient, whose remainder is exact and
    corrects it: no division is made, and every step is exact or rounded as IEEE 754 says.

    Args:
        images: any shape and layout, uint8 or float.
        dtype: float32 or float64, of the result; None keeps a float image's dtype and means float32 for uint8.
    """
    if images.dtype != torch.uint8:
        return images if dtype is None else images.to(dtype)
    values = images.to(dtype or torch.float32)
    quotient = values * (1 / 255)
    remainder = torch.sub(values, quotient, alpha=256).add_(quotient)  # values - 255 quotient; 256 quotient is exact
    return quotient.add_(remainder, alpha=1 / 255)


def with_own_strides(images: Tensor) -> Tensor:
    """Return the same elements, where a dimension of one element has the stride of its place in the memory layout.

    Such a dimension may have any stride, as in `array[:, None]`. Convolutions choose their layout by strides, and
    compiled code is compiled for them.

    Args:
        images: any shape; those that are neither contiguous nor channels_last are returned as they are.
    """
    if 1 in images.shape:
        for form in (torch.contiguous_format, torch.channels_last):
            if images.is_contiguous(memory_format=form):
                place = torch.empty(images.shape, device="meta", memory_format=form)
                return images.as_strided(images.shape, place.stride())
    return images


def as_dense(images: Tensor) -> Tensor:
    """The images if their memory has no gaps and no overlaps, in any order of dimensions; else a contiguous copy."""
    return images if torch.empty_like(images).stride() == images.stride() else images.contiguous()


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 storage, float32 for every other."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
