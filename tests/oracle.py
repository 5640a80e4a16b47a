"""An independent float64 oracle in numpy, written from the formulas of the papers and not from the package's code.

The formulas are from "Bilateral Adversarial Training" (Wang and Zhang, ICCV 2019), with equations 2 to 6 of its
supplement. Philox4x32-10 is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray

# Counter, key and output of philox4x32-10, from the authors' published known-answer tests.
PHILOX_KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def counted(logits: Array, bits: int) -> Array:
    """Return the logits with infinity in place of those that count as infinite in arithmetic of 32 or 64 bits."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(logits) >= {32: 2.0**64, 64: 2.0**960}[bits], np.inf, logits)


def label_gradient(z: Array) -> Array:
    """Return v_k = dL / dy_k = -log p_k of one row, which is not negative."""
    shifted = z - z.max()
    return math.log(np.exp(shifted).sum()) - shifted


def most_confusing(z: Array, c: int) -> int:
    """Return the class other than c with the largest logit; ties go to the lower index."""
    others = z.copy()
    others[c] = -np.inf
    return int(others.argmax())


def least_likely(z: Array, c: int) -> int:
    """Return the class other than c with the smallest logit; ties go to the lower index."""
    others = z.copy()
    others[c] = np.inf
    return int(others.argmin())


def receivers_of(z: Array, c: int, top_k: int | None) -> Array:
    """Return the classes that receive mass: those with the largest v, which have the smallest logits."""
    by_logit = np.argsort(z, kind="stable")
    others = by_logit[by_logit != c]
    return others if top_k is None else others[:top_k]


def adversarial_label(z: Array, c: int, beta: float, gamma: float, top_k: int | None, scheme: str) -> Array:
    """Return y' of one row: c gives the mass eps_y to the receivers, in proportion to their shares s."""
    if not np.isfinite(z).all():
        return np.full_like(z, np.nan)
    receivers = receivers_of(z, c, top_k)
    v = label_gradient(z)
    y = np.zeros_like(z)
    if scheme == "main":
        # v_k - min v + gamma, where v_k - v_j = z_j - z_k; a logit of 1e19 leaves no digits of the others in v itself
        s = np.delete(z, c).max() - z[receivers] + gamma
        eps_y = 1 / (1 + beta * s.max() / s.sum())
        y[receivers] = eps_y * s / s.sum()
        y[c] = 1 - eps_y
    elif len(z) == 2:  # what equations 2 to 6 give for every v, also in the limit sum v = 0
        y[receivers], y[c] = 1 / (1 + beta), beta / (1 + beta)
    else:
        alpha = 1 / (v[receivers].sum() + beta * v[receivers].max())
        y[receivers] = alpha * v[receivers]
        y[c] = alpha * beta * v[receivers].max()
    return y


def joint_gradient(
    logits: Array,
    labels: Sequence[int],
    target: str | Sequence[int],
    beta: float,
    gamma: float,
    top_k: int | None,
    scheme: str,
) -> tuple[Array, Array, Array | None, Array]:
    """Return (objective, gradient, soft labels, targets) of float64 rows.

    A row that is not finite gives NaN and target -1.
    """
    n = logits.shape[1]
    objective, targets = np.full(len(logits), np.nan), np.full(len(logits), -1, dtype=np.int64)
    gradient, soft = np.full_like(logits, np.nan), np.full_like(logits, np.nan)
    for row, (z, c) in enumerate(zip(logits, labels, strict=True)):
        if not np.isfinite(z).all():
            continue
        if isinstance(target, str):
            t = {"mc": most_confusing, "margin": most_confusing, "ll": least_likely}.get(target, lambda _, c: c)(z, c)
        else:
            t = target[row]
        v = label_gradient(z)
        one_hot = (np.arange(n) == t).astype(np.float64)
        if target == "margin":
            objective[row], gradient[row] = z[t] - z[c], one_hot - (np.arange(n) == c)
        else:
            ascend = 1 if target == "untargeted" else -1  # +CE(z, c), or -CE(z, t)
            objective[row], gradient[row] = ascend * v[t], ascend * (np.exp(-v) - one_hot)
        targets[row] = t
        if scheme != "none":
            soft[row] = adversarial_label(z, c, beta, gamma, top_k, scheme)
    return objective, gradient, None if scheme == "none" else soft, targets


def soft_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> tuple[Array, Array, Array]:
    """Return the loss of each row, its gradient in the logits and its gradient in the labels, without reduction.

    Smoothing gives every class the same share of the label (Szegedy et al., CVPR 2016, section 7).
    """
    loss, gradient, v = np.full(len(logits), np.nan), np.full_like(logits, np.nan), np.full_like(logits, np.nan)
    for row, (z, y) in enumerate(zip(logits, labels, strict=True)):
        if np.isfinite(z).all():
            surprise = label_gradient(z)
            mixed = (1 - smoothing) * y + smoothing / len(y)
            loss[row], gradient[row] = (mixed * surprise).sum(), mixed.sum() * np.exp(-surprise) - mixed
            v[row] = (1 - smoothing) * surprise
    return loss, gradient, v


def perturb_step(
    images: Array,
    origin: Array,
    grad: Array,
    step: Array | float,
    epsilon: Array | float,
    lower: float,
    upper: float,
    mask: Array | float = 1.0,
) -> Array:
    """Return the step in the images' dtype, float32 or float64; `mask` multiplies step and epsilon of each pixel.

    Every operation is rounded once, which gives the bits that every backend must give.
    """
    kind = images.dtype.type
    center = origin.astype(kind) / kind(255) if origin.dtype == np.uint8 else origin.astype(kind)
    step, epsilon = np.asarray(step, dtype=kind), np.asarray(epsilon, dtype=kind)
    with np.errstate(invalid="ignore"):
        epsilon = np.where(epsilon >= 0, epsilon, kind(np.nan))
        step, epsilon = step * np.asarray(mask, dtype=kind), epsilon * np.asarray(mask, dtype=kind)
        moved = images + step * np.sign(grad).astype(kind)
        moved = np.minimum(np.maximum(moved, center - epsilon), center + epsilon)
    return np.minimum(np.maximum(moved, kind(lower)), kind(upper))


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of a block, computed with Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


def random_unit(seed: int, step: int, index: int, stream: int = 0) -> np.float32:
    """Return 2 u - 1 for element `index` of the dense memory, exactly; seed and step are any 64-bit integers."""
    seed, step, block = seed % (1 << 64), step % (1 << 64), index // 4
    word = philox4x32((block % (1 << 32), block >> 32, step % (1 << 32), stream), (seed % (1 << 32), seed >> 32))[
        index % 4
    ]
    return np.float32(2 * ((word >> 8) * 2.0**-24) - 1)


def augment(dataset: Array, index: Sequence[int], seed: int, step: int, padding: int, flip: bool, fill: int) -> Array:
    """Return the crops (B, C, H, W) uint8, pixel by pixel: image b draws from block b of stream 1."""
    _, channels, height, width = dataset.shape
    seed, step = seed % (1 << 64), step % (1 << 64)
    result = np.full((len(index), channels, height, width), fill, np.uint8)
    for b, source in enumerate(index):
        words = philox4x32((b, 0, step % (1 << 32), 1), (seed % (1 << 32), seed >> 32))
        down, right = (word * (2 * padding + 1) // 2**32 - padding for word in words[:2])
        for h in range(height):
            for w in range(width):
                row, column = h + down, (width - 1 - w if flip and words[2] >= 2**31 else w) + right
                if 0 <= row < height and 0 <= column < width:
                    result[b, :, h, w] = dataset[source, :, row, column]
    return result
