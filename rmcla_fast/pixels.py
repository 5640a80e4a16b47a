"""Bytes as numbers in [0, 1]: the one place in plain torch where a uint8 image becomes a float one."""

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
