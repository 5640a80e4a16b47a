"""One row of logits a program, or several short ones: the block, its tiles, and logits ordered as integers.

A row of up to LONGEST_TILE classes (half as many in float64) stays in registers; a longer one is walked in tiles of
that many, from cache. What a walk gathers has the tile's shape and is reduced once, at its end: one exchange between
threads a row, not one a tile (and Triton 3.8 fails an assertion of its own on some sums that a loop carries).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.triton_kernels.conversion import widen

LONGEST_TILE = 4096
NO_COLUMN = tl.constexpr(2**31 - 1)  # later than every column


@functools.lru_cache(maxsize=256)
def block_shape(num_classes: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: a warp and 4 values a thread for short rows, else 8 values a thread."""
    columns = min(triton.next_power_of_2(num_classes), LONGEST_TILE // (2 if dtype == torch.float64 else 1))
    return max(128 // columns, 1), columns, max(columns // 256, 1)


def result(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty contiguous (B, C), in the logits' dtype or another."""
    return torch.empty(logits.shape, dtype=dtype or logits.dtype, device=logits.device)


@triton.jit
def tile(line, start, stride, num_classes, live, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """(R, COLUMNS) values of the rows at `line` from column `start` on, 0 outside; their columns; which are inside."""
    columns = start + tl.arange(0, COLUMNS)[None, :]
    inside = (columns < num_classes) & live[:, None]
    return widen(tl.load(line + columns.to(tl.int64) * stride, mask=inside, other=0), DTYPE), columns, inside


@triton.jit
def first_of_largest(values, columns):
    """(R,) the largest of each row of `values`, and the lowest of the `columns` (R, COLUMNS) where it stands."""
    top = tl.max(values, axis=1)
    return top, tl.min(tl.where(values == top[:, None], columns, NO_COLUMN), axis=1)


@triton.jit
def order_key(values, receives, SHIFT: tl.constexpr):
    """Unsigned integers in the order of finite `values`, -0 as 0; where not `receives`, more than any.

    Less their SHIFT low bits, in which 16-bit storage never differs.
    """
    values = tl.where(values == 0, 0.0, values)
    if values.dtype == tl.float64:
        bits = values.to(tl.int64, bitcast=True)
        key = tl.where(receives, bits ^ ((bits >> 63) | -(2**63)), -1).to(tl.uint64, bitcast=True)
    else:
        bits = values.to(tl.int32, bitcast=True)
        key = tl.where(receives, bits ^ ((bits >> 31) | -(2**31)), -1).to(tl.uint32, bitcast=True)
    return key >> SHIFT
