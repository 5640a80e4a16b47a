"""What the element-wise operators share: flat dense memory, and a float or one value an image for step and radius."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.ops.tensors import as_dense
from rmcla_fast.triton_kernels.conversion import scalar, widen

BLOCK = 1024
WARPS = 4  # 8 elements a thread: two 128-bit loads of float32


def dense(images: Tensor) -> Tensor:
    """The images in memory without gaps, themselves where that is so."""
    return images if images.is_contiguous() else as_dense(images)


def same_layout(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape keep their elements in the same order in memory."""
    strides, others = first.stride(), second.stride()
    return strides == others or all(  # where a dimension has one element, its stride does not matter
        size == 1 or a == b for size, a, b in zip(first.shape, strides, others, strict=True)
    )


def in_layout_of(images: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the memory order of the dense `images`, itself where it already is."""
    return tensor if same_layout(images, tensor) else torch.empty_like(images, dtype=tensor.dtype).copy_(tensor)


def batch_geometry(images: Tensor) -> tuple[int, int, int]:
    """(elements, B, s): element i of the memory of the dense `images` belongs to image (i // s) % B."""
    count = images.numel()
    batch = images.shape[0] if images.dim() else 1
    return count, batch, images.stride(0) if batch > 1 else count


def value_stride(values: Tensor | None) -> int:
    return values.stride(0) if values is not None and values.dim() else 0


@triton.jit
def to_unit(values, DTYPE: tl.constexpr):
    """uint8 means value / 255, correctly rounded: a GPU's plain float32 division is not. Floats are as they are."""
    if values.dtype != tl.uint8:
        unit = widen(values, DTYPE)
    elif tl.float64 == DTYPE:
        unit = values.to(DTYPE) / 255.0
    else:
        unit = tl.div_rn(values.to(DTYPE), tl.full(values.shape, 255.0, DTYPE))
    return unit


@triton.jit
def image_of(start, batch, image_size, BLOCK: tl.constexpr):
    """(BLOCK,) (i // image_size) % batch for each element i from `start` on, without a division each."""
    first = (start // image_size) % batch
    within = start % image_size
    lane = tl.arange(0, BLOCK)
    if image_size >= BLOCK:  # then a block meets two images at most
        image = first + (within + lane >= image_size).to(tl.int64)
        image = tl.where(image == batch, 0, image)
    else:
        image = (first + (within.to(tl.int32) + lane) // image_size.to(tl.int32)) % batch
    return image


@triton.jit
def per_image(
    value,
    values,
    stride,
    start,
    batch,
    image_size,
    PER_IMAGE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The float `value`, or where `values` is a tensor the one value in it, or the one of each element's image."""
    if values is None:
        chosen = scalar(value, DTYPE)
    elif PER_IMAGE:
        if image_size >= BLOCK:  # then a block meets two images at most: two loads, and not one an element
            first = (start // image_size) % batch
            second = tl.where(first + 1 == batch, 0, first + 1)
            left = tl.minimum(image_size - start % image_size, BLOCK).to(tl.int32)  # elements of the first
            here, there = tl.load(values + first * stride), tl.load(values + second * stride)
            chosen = tl.where(tl.arange(0, BLOCK) < left, here, there).to(DTYPE)
        else:
            chosen = tl.load(values + image_of(start, batch, image_size, BLOCK) * stride).to(DTYPE)
    else:
        chosen = scalar(tl.load(values), DTYPE)
    return chosen


@triton.jit
def valid_radius(radius):
    """A radius from a tensor may be negative or NaN: both mean NaN, since raising would stall a GPU."""
    return tl.where(radius >= 0, radius, float("nan"))


@triton.jit
def clip(values, lower, upper):
    """NaN stays NaN."""
    values = tl.where(values < lower, lower, values)
    return tl.where(values > upper, upper, values)
