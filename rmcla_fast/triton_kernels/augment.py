"""`augment` in Triton: gather, crop and flip, each byte read once and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmcla_fast.ops.philox import STREAM_AUGMENTATION
from rmcla_fast.triton_kernels import elements
from rmcla_fast.triton_kernels.conversion import alignment_of
from rmcla_fast.triton_kernels.elements import image_of
from rmcla_fast.triton_kernels.random_start import philox_words


@triton.jit
def crop_of(rng, rng_stride, image, padding, STREAM: tl.constexpr):
    """Shift down, shift right, and whether mirrored (1 or 0), of images by their number in the batch."""
    word0, word1, word2, _ = philox_words(rng, rng_stride, image, STREAM)
    sides = (2 * padding + 1).to(tl.uint64)
    down = (word0.to(tl.uint64) * sides) >> 32  # uniform in [0, 2 padding]
    right = (word1.to(tl.uint64) * sides) >> 32
    return (down.to(tl.int64) - padding).to(tl.int32), (right.to(tl.int64) - padding).to(tl.int32), word2 >> 31


@triton.jit(do_not_specialize=["units", "batch", "size", "padding", "fill", "index_stride", "rng_stride"])
def _kernel(
    dataset,  # (N, CHANNELS, HEIGHT, WIDTH) uint8
    index,  # (B,)
    images,
    rng,
    units,  # elements / ALIGNMENT
    batch,
    size,  # N
    padding,
    fill,
    index_stride,
    rng_stride,
    FLIP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    STREAM: tl.constexpr,
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
        down, right, mirrored = crop_of(rng, rng_stride, first, padding, STREAM)
        next_down, next_right, next_mirrored = crop_of(rng, rng_stride, first + 1, padding, STREAM)
        is_first = image == first
        down = tl.where(is_first, down, next_down)
        right = tl.where(is_first, right, next_right)
        mirrored = tl.where(is_first, mirrored, next_mirrored)
    else:
        down, right, mirrored = crop_of(rng, rng_stride, image, padding, STREAM)

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
    pixel = tl.load(dataset + place, mask=inside & valid & hit, other=0)
    pixel = tl.where(valid & hit, pixel, fill.to(tl.uint8))
    tl.store(images + offsets, pixel, mask=inside)


def augment(
    dataset: Tensor, index: Tensor, rng: Tensor, padding: int, flip: bool, fill: int, channels_last: bool
) -> Tensor:
    """Return cropped and flipped images (B, C, H, W) uint8; image b draws its crop and flip from Philox block b."""
    size, channels, height, width = dataset.shape
    batch = index.shape[0]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    images = torch.empty(shape, dtype=torch.uint8, device=dataset.device, memory_format=layout)
    count = images.numel()
    if count == 0:
        return images
    alignment = alignment_of(count)
    with torch.cuda.device_of(dataset):
        _kernel[(triton.cdiv(count, elements.BLOCK),)](
            dataset,
            index,
            images,
            rng,
            count // alignment,
            batch,
            size,
            padding,
            fill,
            index.stride(0),
            rng.stride(0),
            FLIP=flip,
            CHANNELS_LAST=channels_last,
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            STREAM=STREAM_AUGMENTATION,
            ALIGNMENT=alignment,
            BLOCK=elements.BLOCK,
            num_warps=elements.WARPS,
        )
    return images
