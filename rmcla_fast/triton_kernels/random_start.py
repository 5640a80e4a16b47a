"""`random_start` in Triton (Wang and Zhang 2019, the method's step 1), with noise from Philox4x32-10."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from rmcla_fast.ops.philox import STREAM_RANDOM_START
from rmcla_fast.ops.tensors import as_dense_images
from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import alignment_of, arithmetic, narrow, scalar
from rmcla_fast.triton_kernels.elements import clip, load_shares, per_image, to_unit, valid_radius
from rmcla_fast.triton_kernels.memory import writable_beside


@triton.jit
def philox_words(rng, rng_stride, block, STREAM: tl.constexpr):
    """Return the four words of each Philox block.

    The key is (low, high word of the seed), the counter (low, high word of the block, low word of the step, stream).
    """
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    step = tl.load(rng + rng_stride).to(tl.uint32) + low * 0
    return tl.philox(tl.load(rng), low, high, step, low * 0 + STREAM)


@triton.jit
def noise(rng, rng_stride, first, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """Return 2 u - 1 (BLOCK,) float32 for the elements from 4 * first on.

    u in [0, 1) is made of the upper 24 bits of a word.
    """
    word0, word1, word2, word3 = philox_words(rng, rng_stride, first + tl.arange(0, BLOCK // 4), STREAM)
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (BLOCK,))  # element i: word i mod 4
    return 2.0 * ((words >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-8) - 1.0


@triton.jit(do_not_specialize=["units", "batch", "image_size", "radii_stride", "rng_stride", "rng_row", "mask_units"])
def _kernel(
    images,
    out,
    radii,  # (), (B,) or None
    rng,  # (2,), or with RNG_PER_IMAGE (B, 2)
    mask,  # the shares in the order of memory, or None
    units,  # elements / ALIGNMENT, with RNG_PER_IMAGE those of one image
    batch,
    image_size,
    radii_stride,
    rng_stride,
    rng_row,  # the distance between the rows of `rng`
    mask_units,  # elements of the mask / ALIGNMENT
    epsilon: tl.float64,
    lower: tl.float64,
    upper: tl.float64,
    STREAM: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    RNG_PER_IMAGE: tl.constexpr,
    MASK_REPEATS: tl.constexpr,
    CLIP: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = program * 0  # the element at which the program's image begins
    size = units.to(tl.int64) * ALIGNMENT
    if RNG_PER_IMAGE:  # a program works on one image, which is all that it sees from here on
        programs = tl.cdiv(size, BLOCK)
        image = program // programs
        program -= image * programs
        first = image * size
        images += first
        out += first
        rng += image * rng_row
        if radii is not None:
            radii += image * radii_stride
    start = program * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < size
    center = to_unit(tl.load(images + offsets, mask=inside), DTYPE)
    radius = per_image(epsilon, radii, radii_stride, start, batch, image_size, RADIUS_PER_IMAGE, tl.float32, BLOCK)
    radius = valid_radius(radius)
    if mask is not None:
        period = mask_units.to(tl.int64) * ALIGNMENT
        radius = radius * load_shares(mask, first + start, inside, period, MASK_REPEATS, ALIGNMENT, tl.float32, BLOCK)
    shift = radius * noise(rng, rng_stride, start // 4, STREAM, BLOCK)
    moved = center + shift.to(DTYPE)
    if CLIP:
        moved = clip(moved, scalar(lower, DTYPE), scalar(upper, DTYPE))
    tl.store(out + offsets, narrow(moved, out.dtype.element_ty), mask=inside)


def random_start(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float,
    upper: float,
    clip: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """Return images + u with u ~ U(-epsilon, epsilon) from Philox; `mask` multiplies the epsilon of each element.

    Element i of the memory uses word i mod 4 of block i div 4. With `rng` (B, 2) it is element i of each image.
    """
    images = _dense(images, rng)
    out = torch.empty_like(images, dtype=torch.float32 if images.dtype == torch.uint8 else images.dtype)
    mask = elements.mask_beside(images, mask, torch.float32)
    _launch(images, epsilon, epsilons, rng, lower, upper, clip, mask, out)
    return out


def random_start_out(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float,
    upper: float,
    clip: bool,
    mask: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """Write the result of `random_start` into `out`, which may share memory with any of the inputs."""
    images = _dense(images, rng)
    mask = elements.mask_beside(images, mask, torch.float32)
    if elements.same_layout(images, out) and writable_beside(out, images, epsilons, rng, mask):
        _launch(images, epsilon, epsilons, rng, lower, upper, clip, mask, out)
        increment_version(out)
    else:
        out.copy_(random_start(images, epsilon, epsilons, rng, lower, upper, clip, mask))


def _dense(images: Tensor, rng: Tensor) -> Tensor:
    """Return the images, or a copy, without gaps in memory; with `rng` (B, 2) one image after another."""
    return elements.dense(images) if rng.dim() == 1 or images.is_contiguous() else as_dense_images(images)


def _launch(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float,
    upper: float,
    clip: bool,
    mask: Tensor | None,
    out: Tensor,
) -> None:
    count, batch, image_size = elements.batch_geometry(images)
    if count == 0:
        return
    rng_per_image = rng.dim() == 2 and batch > 1
    rows = batch if rng_per_image else 1
    period = mask.numel() if mask is not None else count
    repeats = period < count
    count //= rows
    alignment = alignment_of(count, period)
    with torch.cuda.device_of(images):
        _kernel[(rows * triton.cdiv(count, elements.BLOCK),)](
            images,
            out,
            epsilons,
            rng,
            mask,
            count // alignment,
            batch,
            image_size,
            elements.value_stride(epsilons),
            rng.stride(-1),
            rng.stride(0),
            period // alignment,
            epsilon,
            lower,
            upper,
            STREAM=STREAM_RANDOM_START,
            RADIUS_PER_IMAGE=epsilons is not None and epsilons.dim() == 1 and not rng_per_image,
            RNG_PER_IMAGE=rng_per_image,
            MASK_REPEATS=repeats,
            CLIP=clip,
            ALIGNMENT=alignment,
            DTYPE=arithmetic(out),
            BLOCK=elements.BLOCK,
            num_warps=elements.WARPS,
            enable_fp_fusion=False,
        )
