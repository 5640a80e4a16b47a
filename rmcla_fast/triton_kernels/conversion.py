"""From storage to arithmetic and back: float64 stays float64, every other float is computed in float32."""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter truncates float32 to bfloat16 and loses bfloat16's subnormals; GPUs convert in one instruction.
BFLOAT16_BY_HAND = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def arithmetic(tensor: Tensor) -> tl.dtype:
    """The dtype in which a kernel computes on `tensor`."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def alignment_of(*sizes: int) -> int:
    """The power of two, up to 16, that divides all sizes. A kernel takes them divided by it, and multiplies: so the
    compiler knows how many values one load can take, and compiles once for all sizes that share it."""
    return math.gcd(16, *sizes)


@triton.jit
def widen(x, DTYPE: tl.constexpr):
    """Loaded values in the arithmetic's dtype."""
    if BFLOAT16_BY_HAND and x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Computed values in the storage's dtype, rounded to nearest even."""
    if BFLOAT16_BY_HAND and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        x = tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def scalar(value, DTYPE: tl.constexpr):
    """(1,) a float argument, which arrives in float64, in the arithmetic's dtype: it broadcasts to any block."""
    return tl.full((1,), value, DTYPE)
