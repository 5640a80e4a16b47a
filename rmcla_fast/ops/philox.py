"""The counter-based generator of all noise: random numbers as a function of (seed, step), a stream and a place.

Philox4x32-10 is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The compiled kernels and
Triton's have it too; this one, in plain torch, serves the references and random target classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_RANDOM_START, STREAM_AUGMENTATION, STREAM_RANDOM_TARGETS = 0, 1, 2
WORD = 0xFFFFFFFF  # the bits of one 32-bit word


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
