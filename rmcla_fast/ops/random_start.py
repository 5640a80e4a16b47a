"""`random_start`: images plus uniform noise from the epsilon ball, drawn by a counter-based generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmcla_fast.ops import checks, dispatch
from rmcla_fast.ops.tensors import as_dense, as_dense_images


def _result_dtype(images: Tensor) -> torch.dtype:
    return torch.float32 if images.dtype == torch.uint8 else images.dtype


def _fake(images: Tensor, epsilon: float, epsilons: Tensor | None, rng: Tensor, *_: Any) -> Tensor:
    dense = as_dense(images) if rng.dim() == 1 else as_dense_images(images)
    return torch.empty_like(dense, dtype=_result_dtype(images))


_ARGUMENTS = (
    "Tensor images, float epsilon, Tensor? epsilons, Tensor rng, float lower, float upper, bool clip, Tensor? mask=None"
)
dispatch.define("random_start", "random_start", f"({_ARGUMENTS}) -> Tensor", _fake)
dispatch.define("random_start", "random_start.out", f"({_ARGUMENTS}, *, Tensor(a!) out) -> ()", lambda *_, **__: None)


def random_start(
    images: Tensor,
    epsilon: float | Tensor,
    *,
    rng: Tensor,
    lower: float = 0.0,
    upper: float = 1.0,
    clip: bool = False,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return images + u with u ~ U(-epsilon, epsilon) for every pixel; every backend gives the same bits.

    This is step 1 of "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), which does not clip to the pixel
    range. The noise is from Philox4x32-10 (Salmon et al., SC 2011), with key (low, high word of the seed) and counter
    (low, high word of i div 4, low word of the step, 0). Element i of the dense memory uses word i mod 4 of that block:
    u = (word >> 8) * 2**-24, and epsilon * (2 u - 1), rounded to float32, is added.

    Args:
        images: any shape and layout, uint8 (value / 255), float32, float64, float16 or bfloat16.
        epsilon: the radius, in the unit of [0, 1] images (8/255); a float that is not negative, or a float32 tensor on
            the images' device of shape () or (B,). A negative or NaN value in a tensor gives NaN in that image.
        rng: int64 tensor on the images' device, (seed, step) of shape (2,) for the whole batch, or of shape (B, 2) for
            each image. With (B, 2) image b gets the noise that it gets alone with rng[b], whatever batch it is in. The
            operator reads rng and never advances it: the same rng gives the same noise. Increase the step to draw fresh
            noise, also when a captured CUDA graph is replayed.
        lower, upper: the pixel range, used only with `clip`.
        clip: whether to clip to the pixel range.
        mask: which pixels may move, or how much of the budget each of them has: bool, or float32, float64, float16 or
            bfloat16 in [0, 1], on the images' device, of a shape that broadcasts to theirs, such as (H, W). The epsilon
            of each pixel is multiplied by its value, rounded to float32. True and 1 change nothing, and False and 0
            leave the pixel as it is. The noise of the other pixels stays the same. On a CPU a value outside [0, 1]
            raises; on a GPU it gives NaN in that element, since a check would stall it.
        out: a tensor to write and return, of the result's shape and dtype; it may share memory with any input.
        backend: "reference", "cpu", "triton" or "cuda"; None chooses.

    Returns:
        The noisy images, in the shape, dtype (float32 for uint8) and memory layout of `images` (contiguous if `images`
        are not dense). The noise follows the order of memory, so in another layout it falls on other pixels. With an
        rng (B, 2) that is the order of memory within each image: the images of the result lie one after another, each
        in the layout that it gets alone. NaN in `images` or `mask` gives NaN in that element. The result is not
        differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
    """
    checks.floating("images", images, uint8=True)
    checks.random_state(rng, images, "images", per_image=True)
    checks.boolean("clip", clip)
    if mask is not None:
        checks.mask(mask, images)
    epsilons = None
    if isinstance(epsilon, Tensor):
        epsilons, epsilon = checks.per_image("epsilon", epsilon, images), 0.0
    arguments = (
        checks.not_negative("epsilon", epsilon),
        epsilons,
        rng,
        *checks.pixel_range(lower, upper),
        clip,
        mask,
    )
    if out is None:
        result: Tensor = dispatch.choose("random_start", images, backend)(images, *arguments)
        return result
    checks.output(out, images.shape, _result_dtype(images), images, "images")
    dispatch.choose("random_start.out", images, backend)(images, *arguments, out=out)
    return out
