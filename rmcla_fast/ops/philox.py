"""Philox4x32-10, the generator of all random numbers: a function of (seed, step), a stream and a position.

It is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. This version in plain torch is used by
the reference operators and for random target classes. The compiled and Triton kernels have their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_RANDOM_START, STREAM_AUGMENTATION, STREAM_RANDOM_TARGETS = 0, 1, 2
WORD = 0xFFFFFFFF  # the bits of one 32-bit word


def philox_uniform(rng: Tensor, count: int, stream: int) -> Tensor:
    """Return (count,) float32 numbers in [0, 1), from the upper 24 bits of the words of one stream.

    `rng` is an int64 tensor (seed, step). If it has shape (B, 2), the result has shape (B, count).
    """
    words = philox_words(rng, torch.arange((count + 3) // 4, device=rng.device), stream)
    bits = torch.stack(words, -1).flatten(-2)[..., :count]
    return (bits >> 8).to(torch.float32) * 2.0**-24


def philox_words(rng: Tensor, block: Tensor, stream: int) -> list[Tensor]:
    """Return the four 32-bit words of each block of one stream, as int64 tensors of the shape of `block`.

    `rng` is (seed, step). If it has shape (B, 2), the tensors have B rows of that shape.
    """
    seed, step = rng[..., :1], rng[..., 1:]
    counter = [block & WORD, block >> 32, step & WORD, torch.full_like(block, stream)]
    return philox4x32(counter, [seed & WORD, (seed >> 32) & WORD])


def philox4x32(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Return four 32-bit words for each counter of four words and key of two; int64 tensors hold all of them."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and low word of a product of two 32-bit words.

    The constant is split into 16-bit halves, since the product has 64 bits and a positive int64 only 63.
    """
    low, high = a * (constant & 0xFFFF), a * (constant >> 16)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
