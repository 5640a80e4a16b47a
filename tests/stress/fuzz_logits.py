"""Logits and classes of the fuzzer, from usual ones to those that no arithmetic holds."""

from __future__ import annotations

import random

import numpy as np
import torch
from adversarial_inputs import LOGITS, SMALL_CLASS_COUNTS
from tolerances import exact
from torch import Tensor

from rmcla_fast.ops.tensors import compute_dtype

NAN, INF = float("nan"), float("inf")
LIMIT = {torch.float32: 2.0**64, torch.float64: 2.0**960}  # from here on a logit counts as infinite in this arithmetic


def draw_shape(draw: random.Random, small: bool) -> tuple[int, int]:
    """Draw (B, C), with C odd, even or close to the widths of vectors, warps and blocks."""
    if small:
        return draw.choice((3, 1, 2, 4, 0)), draw.choice((*SMALL_CLASS_COUNTS, draw.randint(2, 20)))
    classes = draw.choice((2, 3, 10, draw.randint(2, 70), draw.randint(2, 300), 2 * draw.randint(1, 999) + 1, 1024))
    if classes < 70 and draw.random() < 0.1:
        return draw.randint(50, 400), classes
    return draw.choice((3, 1, 2, 4, 5, 7, 9, 17, 0)), classes


def draw_logits(draw: random.Random, generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Draw rows of one or two kinds of LOGITS or of a wide spread, some with special values at a few places."""

    def rows() -> Tensor:
        name = draw.choice((*LOGITS, "every size", "wide"))
        if name not in LOGITS:
            most = 308.0 if dtype == torch.float64 and draw.random() < 0.5 else 38.5
            size = (shape[0], 1) if name == "wide" else shape
            exponents = 17 + (most - 17) * torch.rand(size, generator=generator, dtype=torch.float64)
            if name == "every size":
                exponents = exponents - 90 * torch.rand(size, generator=generator, dtype=torch.float64)
            return torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**exponents
        return LOGITS["huge" if name == "enormous" and dtype == torch.float16 else name](generator, shape)

    values = rows()
    if draw.random() < 0.4:
        values = torch.where(torch.rand((shape[0], 1), generator=generator) < 0.5, rows(), values)
    values = values.to(dtype)
    if draw.random() < 0.35 and shape[0]:
        info, limit = torch.finfo(dtype), LIMIT[compute_dtype(values)]
        below = limit * (1 - info.eps / 2)
        specials = (NAN, INF, info.max, limit, below, below, info.smallest_normal, info.tiny * info.eps, 0.0)
        for _ in range(draw.randint(1, 4)):
            special = torch.tensor(draw.choice((1, -1)) * draw.choice(specials), dtype=torch.float64)
            values[draw.randrange(shape[0]), draw.randrange(shape[1])] = special.to(dtype)
    return values


def draw_classes(draw: random.Random, generator: torch.Generator, shape: tuple[int, int], missing: bool) -> Tensor:
    """Draw (B,) classes, one of which does not exist if `missing`."""
    classes = torch.randint(0, shape[1], (shape[0],), generator=generator)
    if missing and shape[0]:
        classes[draw.randrange(shape[0])] = draw.choice((-1, shape[1], 2**32, -(2**62)))
    return classes


def known(classes: Tensor, count: int) -> Tensor:
    """Return which classes exist."""
    return (classes >= 0) & (classes < count)


def as_read(logits: Tensor, valid: Tensor) -> np.ndarray:
    """Return the logits for the oracle: NaN where a row has a logit that counts as infinite, or is not valid.

    The wider dtype keeps the sums of the largest float64 logits finite.
    """
    rows = exact(logits).astype(np.longdouble)
    bad = ~(np.abs(rows) < LIMIT[compute_dtype(logits)]).all(1) | ~valid.numpy()
    rows[bad] = np.nan
    return rows
