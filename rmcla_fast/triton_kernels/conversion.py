"""Conversion between the dtype in memory and the dtype of the arithmetic: float64 for float64, else float32."""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter truncates instead of rounding to bfloat16, and loses bfloat16's subnormals. GPUs convert
# correctly, in one instruction.
BFLOAT16_BY_HAND = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def arithmetic(tensor: Tensor) -> tl.dtype:
    """Return the dtype in which a kernel computes on `tensor`."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def alignment_of(*sizes: int) -> int:
    """Return the largest power of two, up to 16, that divides all sizes.

    A kernel receives the sizes divided by it and multiplies them again. The compiler then knows how many values one
    load can read, and compiles once for all sizes with the same alignment.
    """
    return math.gcd(16, *sizes)


@triton.jit
def widen(x, DTYPE: tl.constexpr):
    """Convert loaded values to the dtype of the arithmetic."""
    if BFLOAT16_BY_HAND and x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Convert computed values to the dtype in memory, rounded to nearest even."""
    if BFLOAT16_BY_HAND and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        x = tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def scalar(value, DTYPE: tl.constexpr):
    """Return a float argument, which arrives as float64, as a (1,) block of DTYPE that broadcasts to any block."""
    return tl.full((1,), value, DTYPE)
