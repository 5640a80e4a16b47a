"""Whether a kernel may write into a caller's buffer as it reads: its blocks run in any order."""

from __future__ import annotations

from torch import Tensor


def extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses between which a tensor's elements lie."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def writable_beside(out: Tensor, *inputs: Tensor) -> bool:
    """Whether each input is `out` itself, element for element, or apart from it; a shifted view of it is neither."""
    if out.numel() == 0:
        return True
    start, end = extent(out)
    for tensor in inputs:
        if tensor.data_ptr() == start and tensor.dtype == out.dtype and tensor.stride() == out.stride():
            continue
        other_start, other_end = extent(tensor)
        if other_start < end and start < other_end:
            return False
    return True
