"""A check whether a kernel may write into a caller's buffer while it still reads its inputs.

The blocks of a kernel run in any order, so memory that partly overlaps an input must not be written.
"""

from __future__ import annotations

from torch import Tensor


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses at which the memory of a tensor's elements begins and ends."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def writable_beside(out: Tensor, *inputs: Tensor | None) -> bool:
    """Return whether each input has the very elements of `out`, or no memory in common with it, or is None."""
    if out.numel() == 0:
        return True
    start, end = extent(out)
    kind = start, out.dtype, out.shape, out.stride()
    for tensor in inputs:
        if tensor is None or (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) == kind:
            continue
        other_start, other_end = extent(tensor)
        if other_start < end and start < other_end:
            return False
    return True
