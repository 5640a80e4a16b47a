"""Reference of `random_start` (Wang and Zhang 2019, the method's step 1) in plain torch, with its counter-based noise.

Philox4x32-10 is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rmcla_fast.pixels import to_unit
from rmcla_fast.reference.labels import compute_dtype
from rmcla_fast.reference.perturb_step import as_dense, per_image

STREAM_RANDOM_START, STREAM_AUGMENTATION, STREAM_RANDOM_TARGETS = 0, 1, 2
WORD = 0xFFFFFFFF


def random_start(
    images: Tensor,
    epsilon: float,
    epsilons: Tensor | None,
    rng: Tensor,
    lower: float = 0.0,
    upper: float = 1.0,
    clip: bool = False,
) -> Tensor:
    """images + u, u ~ U(-epsilon, epsilon) from Philox; element i of memory takes word i mod 4 of block i div 4."""
    images = as_dense(images)
    result = torch.empty_like(images, dtype=torch.float32 if images.dtype == torch.uint8 else images.dtype)
    noise = torch.empty_like(result, dtype=torch.float32)
    memory = noise.as_strided((noise.numel(),), (1,))  # `empty_like` is dense: every element once, in memory order
    memory.copy_(philox_uniform(rng, memory.numel(), STREAM_RANDOM_START))
    radius = per_image(epsilon, epsilons, images).to(torch.float32)
    noise = torch.where(radius >= 0, radius, float("nan")) * (2 * noise - 1)
    start = to_unit(images, compute_dtype(result)) + noise
    return result.copy_(start.clamp(lower, upper) if clip else start)


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
    out.copy_(random_start(images, epsilon, epsilons, rng, lower, upper, clip))


def philox_uniform(rng: Tensor, count: int, stream: int) -> Tensor:
    """(count,) float32 in [0, 1): the upper 24 bits of Philox words, for rng (seed, step) and one stream."""
    words = philox_words(rng, torch.arange((count + 3) // 4, device=rng.device), stream)
    bits = torch.stack(words, 1).flatten()[:count]
    return (bits >> 8).to(torch.float32) * 2.0**-24


def philox_words(rng: Tensor, block: Tensor, stream: int) -> list[Tensor]:
    """The four words of each Philox block of one stream, for rng (seed, step)."""
    seed, step = rng[0], rng[1]
    counter = [block & WORD, block >> 32, (step & WORD).expand_as(block), torch.full_like(block, stream)]
    return philox4x32(counter, [seed & WORD, (seed >> 32) & WORD])


def philox4x32(counter: list[Tensor], key: list[Tensor], rounds: int = 10) -> list[Tensor]:
    """Four 32-bit words for each counter of four 32-bit words and key of two, all held in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 by 32 bit product; in 16-bit halves, since int64 holds 63 bits."""
    low, high = a * (constant & 0xFFFF), a * (constant >> 16)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
