"""`random_start` in Triton (Wang and Zhang 2019, the method's step 1): Philox4x32-10, four elements a counter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.reference.random_start import STREAM_RANDOM_START
from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import arithmetic, narrow, scalar
from rmcla_fast.triton_kernels.elements import load_flat, per_image, store_flat, to_unit, valid_radius


@triton.jit
def noise(rng, rng_stride, first, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """(BLOCK,) uniform float32 in [-1, 1) for the elements from 4 * first on: 2 u - 1, u the upper 24 bits of a word."""
    seed = tl.load(rng)
    step = tl.load(rng + rng_stride)
    block = first + tl.arange(0, BLOCK // 4)
    zero = tl.zeros((BLOCK // 4,), tl.uint32)
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    # Key (low, high of seed), counter (low, high of the block's number, low of step, stream).
    word0, word1, word2, word3 = tl.philox(seed, low, high, zero + (step & 0xFFFFFFFF).to(tl.uint32), zero + STREAM)
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (BLOCK,))  # word i mod 4 of block i div 4
    return 2.0 * ((words >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-8) - 1.0


@triton.jit
def _start(
    images,
    out,
    radii,
    rng,
    start,
    count,
    batch,
    image_size,
    radii_stride,
    rng_stride,
    epsilon,
    lower,
    upper,
    STREAM: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    CLIP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = start + tl.arange(0, BLOCK)
    center = to_unit(load_flat(images, offsets, count, MASKED), DTYPE)
    radius = per_image(epsilon, radii, radii_stride, start, batch, image_size, RADIUS_PER_IMAGE, tl.float32, BLOCK)
    shift = valid_radius(radius) * noise(rng, rng_stride, start // 4, STREAM, BLOCK)
    moved = center + shift.to(DTYPE)
    if CLIP:
        lower = scalar(lower, DTYPE)
        upper = scalar(upper, DTYPE)
        moved = tl.where(moved < lower, lower, moved)
        moved = tl.where(moved > upper, upper, moved)
    store_flat(out, offsets, narrow(moved, out.dtype.element_ty), count, MASKED)


@triton.jit(do_not_specialize=["count", "batch", "image_size", "radii_stride", "rng_stride"])
def _kernel(
    images,
    out,
    radii,
    rng,
    count,
    batch,
    image_size,
    radii_stride,
    rng_stride,
    epsilon: tl.float64,
    lower: tl.float64,
    upper: tl.float64,
    STREAM: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    CLIP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= count:
        _start(images, out, radii, rng, start, count, batch, image_size, radii_stride, rng_stride, epsilon, lower, upper, STREAM, RADIUS_PER_IMAGE, CLIP, False, DTYPE, BLOCK)  # fmt: skip
    else:
        _start(images, out, radii, rng, start, count, batch, image_size, radii_stride, rng_stride, epsilon, lower, upper, STREAM, RADIUS_PER_IMAGE, CLIP, True, DTYPE, BLOCK)  # fmt: skip


def random_start(
    images: Tensor, epsilon: float, epsilons: Tensor | None, rng: Tensor, lower: float, upper: float, clip: bool
) -> Tensor:
    """images + u, u ~ U(-epsilon, epsilon) from Philox; element i of the dense memory takes word i mod 4 of block i div 4."""
    images = elements.dense(images)
    out = torch.empty_like(images, dtype=torch.float32 if images.dtype == torch.uint8 else images.dtype)
    _launch(images, epsilon, epsilons, rng, lower, upper, clip, out)
    return out


def random_start_out(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float,
    upper: float,
    clip: bool,
    out: Tensor,
) -> None:
    """`random_start` into `out`, which may be `images`."""
    images = elements.dense(images)
    if elements.same_layout(images, out):
        _launch(images, epsilon, epsilons, rng, lower, upper, clip, out)
    else:
        out.copy_(random_start(images, epsilon, epsilons, rng, lower, upper, clip))


def _launch(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float,
    upper: float,
    clip: bool,
    out: Tensor,
) -> None:
    count, batch, image_size = elements.batch_geometry(images)
    if count == 0:
        return
    with torch.cuda.device_of(images):
        _kernel[(triton.cdiv(count, elements.BLOCK),)](
            images,
            out,
            epsilons,
            rng,
            count,
            batch,
            image_size,
            elements.value_stride(epsilons),
            rng.stride(0),
            epsilon,
            lower,
            upper,
            STREAM=STREAM_RANDOM_START,
            RADIUS_PER_IMAGE=epsilons is not None and epsilons.dim() == 1,
            CLIP=clip,
            DTYPE=arithmetic(out),
            BLOCK=elements.BLOCK,
            num_warps=elements.WARPS,
            enable_fp_fusion=False,
        )
