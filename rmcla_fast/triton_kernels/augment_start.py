"""`augment_start` in Triton: gather, crop, flip and random start, each pixel read once and written twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.ops.philox import STREAM_AUGMENTATION, STREAM_RANDOM_START
from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import alignment_of, narrow, scalar, widen
from rmcla_fast.triton_kernels.elements import image_of, per_image, to_unit, valid_radius
from rmcla_fast.triton_kernels.random_start import noise, philox_words


@triton.jit
def crop_of(rng, rng_stride, image, padding, STREAM: tl.constexpr):
    """Shift down, shift right, and whether mirrored (1 or 0), of images by their number in the batch."""
    word0, word1, word2, _ = philox_words(rng, rng_stride, image, STREAM)
    sides = (2 * padding + 1).to(tl.uint64)
    down = (word0.to(tl.uint64) * sides) >> 32  # uniform in [0, 2 padding]
    right = (word1.to(tl.uint64) * sides) >> 32
    return (down.to(tl.int64) - padding).to(tl.int32), (right.to(tl.int64) - padding).to(tl.int32), word2 >> 31


@triton.jit(do_not_specialize=["units", "batch", "size", "padding", "index_stride", "radii_stride", "rng_stride"])
def _kernel(
    dataset,  # (N, CHANNELS, HEIGHT, WIDTH) uint8
    index,  # (B,)
    images,
    start_images,
    radii,  # (), (B,) or None
    rng,
    units,  # elements / ALIGNMENT
    batch,
    size,  # N
    padding,
    index_stride,
    radii_stride,
    rng_stride,
    epsilon: tl.float64,
    fill: tl.float64,
    FLIP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    RADIUS_PER_IMAGE: tl.constexpr,
    AUGMENTATION: tl.constexpr,  # the streams of noise
    RANDOM_START: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    IMAGE_SIZE: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    image_size = tl.full((), IMAGE_SIZE, tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < units.to(tl.int64) * ALIGNMENT
    image = image_of(start, batch, image_size, BLOCK)

    if IMAGE_SIZE >= BLOCK:  # a block meets two images at most: two draws, and not one an element
        first = start // image_size
        down, right, mirrored = crop_of(rng, rng_stride, first, padding, AUGMENTATION)
        next_down, next_right, next_mirrored = crop_of(rng, rng_stride, first + 1, padding, AUGMENTATION)
        is_first = image == first
        down = tl.where(is_first, down, next_down)
        right = tl.where(is_first, right, next_right)
        mirrored = tl.where(is_first, mirrored, next_mirrored)
    else:
        down, right, mirrored = crop_of(rng, rng_stride, image, padding, AUGMENTATION)

    within = (offsets - image * IMAGE_SIZE).to(tl.int32)
    if CHANNELS_LAST:
        channel = within % CHANNELS
        column = (within // CHANNELS) % WIDTH
        row = within // (CHANNELS * WIDTH)
    else:
        column = within % WIDTH
        row = (within // WIDTH) % HEIGHT
        channel = within // (WIDTH * HEIGHT)
    if FLIP:
        column = tl.where(mirrored == 1, WIDTH - 1 - column, column)
    row += down
    column += right
    source = tl.load(index + image * index_stride, mask=inside, other=0)
    valid = (source >= 0) & (source < size)
    hit = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    place = source * IMAGE_SIZE + (channel * HEIGHT + row) * WIDTH + column
    pixel = to_unit(tl.load(dataset + place, mask=inside & valid & hit, other=0), tl.float32)
    pixel = tl.where(hit, pixel, scalar(fill, tl.float32))
    pixel = narrow(tl.where(valid, pixel, float("nan")), images.dtype.element_ty)
    tl.store(images + offsets, pixel, mask=inside)

    radius = per_image(epsilon, radii, radii_stride, start, batch, image_size, RADIUS_PER_IMAGE, tl.float32, BLOCK)
    shift = valid_radius(radius) * noise(rng, rng_stride, start // 4, RANDOM_START, BLOCK)
    moved = widen(pixel, tl.float32) + shift
    tl.store(start_images + offsets, narrow(moved, images.dtype.element_ty), mask=inside)


def augment_start(
    dataset: Tensor,
    index: Tensor,
    rng: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    padding: int,
    flip: bool,
    fill: float,
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Augmented images (B, C, H, W) and `random_start` of them; image b draws its crop and flip from Philox block b."""
    size, channels, height, width = dataset.shape
    batch = index.shape[0]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    images = torch.empty(shape, dtype=dtype, device=dataset.device, memory_format=layout)
    start = torch.empty_like(images)
    count = images.numel()
    if count == 0:
        return images, start
    alignment = alignment_of(count)
    with torch.cuda.device_of(dataset):
        _kernel[(triton.cdiv(count, elements.BLOCK),)](
            dataset,
            index,
            images,
            start,
            epsilons,
            rng,
            count // alignment,
            batch,
            size,
            padding,
            index.stride(0),
            elements.value_stride(epsilons),
            rng.stride(0),
            epsilon,
            fill,
            FLIP=flip,
            CHANNELS_LAST=channels_last,
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            RADIUS_PER_IMAGE=epsilons is not None and epsilons.dim() == 1,
            AUGMENTATION=STREAM_AUGMENTATION,
            RANDOM_START=STREAM_RANDOM_START,
            ALIGNMENT=alignment,
            BLOCK=elements.BLOCK,
            num_warps=elements.WARPS,
            enable_fp_fusion=False,
        )
    return images, start
