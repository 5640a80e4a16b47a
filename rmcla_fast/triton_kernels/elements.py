"""What the element-wise kernels share: flat dense memory, masks, and step sizes or radii that differ between images."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.ops.tensors import as_dense
from rmcla_fast.triton_kernels.conversion import scalar, widen

BLOCK = 1024
WARPS = 4  # 8 elements per thread, which are two 128-bit loads of float32


def dense(images: Tensor) -> Tensor:
    """Return the images if their memory has no gaps, else a contiguous copy."""
    return images if images.is_contiguous() else as_dense(images)


def same_layout(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of the same shape have their elements in the same order in memory."""
    strides, others = first.stride(), second.stride()
    return strides == others or all(  # the stride of a dimension of size 1 does not matter
        size == 1 or a == b for size, a, b in zip(first.shape, strides, others, strict=True)
    )


def in_layout_of(images: Tensor, tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy of it, in the memory order of the dense `images`."""
    return tensor if same_layout(images, tensor) else torch.empty_like(images, dtype=tensor.dtype).copy_(tensor)


def mask_beside(images: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the mask in the memory order of the dense `images`, or None without a mask or without elements.

    Element i of their memory has value i % n of the result, which has n elements. A mask that repeats itself in this
    order is not repeated in memory, so that it stays in the caches. A bool mask stays bool, and any other becomes
    `dtype`. A mask that is of this form already is not copied.
    """
    if mask is None or images.numel() == 0:
        return None
    shape, strides, missing = list(images.shape), images.stride(), images.dim() - mask.dim()
    for d in range(images.dim()):
        if d >= missing and mask.shape[d - missing] != 1:
            break
        part = [*shape[:d], 1, *shape[d + 1 :]]
        count = math.prod(part)
        span = 1 + sum((size - 1) * stride for size, stride in zip(part, strides, strict=True))
        # The kernels need whole vectors, and are slow on short pieces.
        if count < 64 or count % 16 or count != span:
            break
        shape = part
    values = mask.expand(shape)
    dtype = torch.bool if mask.dtype == torch.bool else dtype
    period = images.as_strided(shape, strides)
    if values.dtype == dtype and same_layout(period, values):
        return values
    return torch.empty_like(period, dtype=dtype).copy_(values)


def batch_geometry(images: Tensor) -> tuple[int, int, int]:
    """Return (number of elements, B, s) of the dense `images`; element i of memory is in image (i // s) % B."""
    count = images.numel()
    batch = images.shape[0] if images.dim() else 1
    return count, batch, images.stride(0) if batch > 1 else count


def value_stride(values: Tensor | None) -> int:
    """Return the distance between two images' values in memory; 0 if there is at most one value."""
    return values.stride(0) if values is not None and values.dim() else 0


@triton.jit
def to_unit(values, DTYPE: tl.constexpr):
    """Convert uint8 to value / 255, correctly rounded, and floats to DTYPE.

    A GPU's plain float32 division is not correctly rounded, so `div_rn` does it.
    """
    if values.dtype != tl.uint8:
        unit = widen(values, DTYPE)
    elif tl.float64 == DTYPE:
        unit = values.to(DTYPE) / 255.0
    else:
        unit = tl.div_rn(values.to(DTYPE), tl.full(values.shape, 255.0, DTYPE))
    return unit


@triton.jit
def image_of(start, batch, image_size, BLOCK: tl.constexpr):
    """Return the image (BLOCK,) of each element from `start` on, with fewer divisions than one per element."""
    first = (start // image_size) % batch
    within = start % image_size
    lane = tl.arange(0, BLOCK)
    if image_size >= BLOCK:  # then a block spans at most two images
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
    """Return the number for each element of the block.

    It is the float `value` if `values` is None, else the one value in `values`, or with PER_IMAGE the value of the
    element's image.
    """
    if values is None:
        chosen = scalar(value, DTYPE)
    elif PER_IMAGE:
        if image_size >= BLOCK:  # then a block spans at most two images, and two loads are enough
            first = (start // image_size) % batch
            second = tl.where(first + 1 == batch, 0, first + 1)
            left = tl.minimum(image_size - start % image_size, BLOCK).to(tl.int32)  # elements in the first image
            here, there = tl.load(values + first * stride), tl.load(values + second * stride)
            chosen = tl.where(tl.arange(0, BLOCK) < left, here, there).to(DTYPE)
        else:
            chosen = tl.load(values + image_of(start, batch, image_size, BLOCK) * stride).to(DTYPE)
    else:
        chosen = scalar(tl.load(values), DTYPE)
    return chosen


@triton.jit
def load_shares(
    mask,
    start,
    inside,
    period,
    REPEATS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the mask's values for the block of elements from `start` on, with NaN for one outside [0, 1].

    With REPEATS the mask has only `period` values, which repeat themselves. ALIGNMENT divides this number.
    """
    places = start + tl.arange(0, BLOCK)
    if REPEATS:
        within = start % period
        lane = tl.arange(0, BLOCK)
        if period >= BLOCK:  # then a block meets the end of the mask at most once
            places = within + lane
            places = tl.where(places >= period, places - period, places)
        else:
            places = ((within.to(tl.int32) + lane) % period.to(tl.int32)).to(tl.int64)
        places = tl.max_contiguous(tl.multiple_of(places, ALIGNMENT), ALIGNMENT)
    share = tl.load(mask + places, mask=inside).to(DTYPE)
    return tl.where((share >= 0) & (share <= 1), share, float("nan"))


@triton.jit
def valid_radius(radius):
    """Return NaN for a negative or NaN radius, which a tensor may hold; raising an error would stall a GPU."""
    return tl.where(radius >= 0, radius, float("nan"))


@triton.jit
def clip(values, lower, upper):
    """Clip to [lower, upper]; NaN stays NaN."""
    values = tl.where(values < lower, lower, values)
    return tl.where(values > upper, upper, values)
