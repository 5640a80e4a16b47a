"""`random_start` in plain torch (Wang and Zhang 2019, the method's step 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.ops.philox import STREAM_RANDOM_START, philox_uniform
from rmcla_fast.ops.tensors import as_dense, as_dense_images, compute_dtype, to_unit
from rmcla_fast.reference.perturb_step import per_image, rounded, shares


def random_start(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float = 0.0,
    upper: float = 1.0,
    clip: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Return images + u with u ~ U(-epsilon, epsilon) from Philox; `mask` multiplies the epsilon of each element.

    Element i of the memory uses word i mod 4 of block i div 4. With `rng` (B, 2) it is element i of each image.
    """
    images = as_dense(images) if rng.dim() == 1 else as_dense_images(images)
    result = torch.empty_like(images, dtype=torch.float32 if images.dtype == torch.uint8 else images.dtype)
    noise = torch.empty_like(result, dtype=torch.float32)
    memory = noise.as_strided((noise.numel(),), (1,))  # the elements in the order of memory, which has no gaps
    count = images.numel() if rng.dim() == 1 else images.shape[1:].numel()
    memory.copy_(philox_uniform(rng, count, STREAM_RANDOM_START).flatten())
    radius = per_image(epsilon, epsilons, images).to(torch.float32)
    radius = torch.where(radius >= 0, radius, float("nan"))
    if mask is not None:
        radius = radius * shares(mask, images, torch.float32)
    noise = radius * (2 * noise - 1)
    start = to_unit(images, compute_dtype(result)) + noise
    if clip:
        start = start.clamp(rounded(lower, start.dtype), rounded(upper, start.dtype))
    return result.copy_(start)


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
    """Write the result of `random_start` into `out`."""
    out.copy_(random_start(images, epsilon, epsilons, rng, lower, upper, clip, mask))
