"""What the kernels over rows of logits share: the shape of a block, its tiles, and logits ordered as integers.

A program handles one row, or several short ones. A row of up to LONGEST_TILE classes (half as many in float64) stays in
registers; a longer one is read from cache in tiles of that many classes. A pass over the tiles collects values in the
shape of a tile and reduces them once, at its end, so that threads exchange data once per row and not once per tile.
This also avoids an assertion that Triton 3.8 fails on some sums carried through a loop.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.triton_kernels.conversion import widen

LONGEST_TILE = 4096
NO_COLUMN = tl.constexpr(2**31 - 1)  # larger than every column index


@functools.lru_cache(maxsize=256)
def block_shape(num_classes: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return (rows, columns, warps) of a program.

    Short rows get one warp and 4 values per thread, longer ones 8 values per thread.
    """
    columns = min(triton.next_power_of_2(num_classes), LONGEST_TILE // (2 if dtype == torch.float64 else 1))
    return max(128 // columns, 1), columns, max(columns // 256, 1)


def result(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised contiguous (B, C) tensor on the logits' device, in `dtype` or the logits' dtype."""
    return torch.empty(logits.shape, dtype=dtype or logits.dtype, device=logits.device)


@triton.jit
def tile(line, start, stride, num_classes, live, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """Load the values (R, COLUMNS) of the rows at `line` from column `start` on, with 0 outside the rows.

    Returns the values, their column indices, and which of them are inside the rows.
    """
    columns = start + tl.arange(0, COLUMNS)[None, :]
    inside = (columns < num_classes) & live[:, None]
    return widen(tl.load(line + columns.to(tl.int64) * stride, mask=inside, other=0), DTYPE), columns, inside


@triton.jit
def is_finite(z):
    """Return whether values are finite; those of magnitude 2**64 or more (2**960 in float64) count as infinite."""
    LIMIT: tl.constexpr = 2.0**960 if z.dtype == tl.float64 else 2.0**64
    return tl.abs(z) < LIMIT


@triton.jit
def first_of_largest(values, columns):
    """Return the largest value (R,) of each row, and the lowest of its `columns` (R, COLUMNS) that has this value."""
    top = tl.max(values, axis=1)
    return top, tl.min(tl.where(values == top[:, None], columns, NO_COLUMN), axis=1)


@triton.jit
def order_key(values, receives, SHIFT: tl.constexpr):
    """Return unsigned integers that are ordered as the finite `values` are, with -0 equal to 0.

    Values that do not receive mass get the largest integer. The SHIFT low bits are dropped: they are always equal in
    16-bit storage.
    """
    values = tl.where(values == 0, 0.0, values)
    if values.dtype == tl.float64:
        bits = values.to(tl.int64, bitcast=True)
        key = tl.where(receives, bits ^ ((bits >> 63) | -(2**63)), -1).to(tl.uint64, bitcast=True)
    else:
        bits = values.to(tl.int32, bitcast=True)
        key = tl.where(receives, bits ^ ((bits >> 31) | -(2**31)), -1).to(tl.uint32, bitcast=True)
    return key >> SHIFT
