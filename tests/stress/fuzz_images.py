"""Random arguments of the operators on elements: shapes, pixels, radii, masks and seeds, among them the extremes."""

from __future__ import annotations

import random

import torch
from adversarial_inputs import FLOAT_DTYPES, pixels
from stress.fuzz_memory import draw_number
from torch import Tensor

NAN, INF = float("nan"), float("inf")
RADII = (0.0, 8 / 255, 0.3, 1.0, 1e-30, 1e-45, 1e30, 1e300)
SEEDS = (0, 1, -1, 2**32 + 7, -(2**63), 2**63 - 1)


def generator_of(draw: random.Random) -> torch.Generator:
    """Return a generator of tensors with a seed that is drawn."""
    return torch.Generator().manual_seed(draw.getrandbits(62))


def draw_shape(draw: random.Random, small: bool) -> tuple[int, ...]:
    """Draw a shape of zero to five dimensions, most of them of images and some empty."""
    most = 5 if small else 9
    kind = draw.choice(("images", "images", "images", "anything", "five", "flat"))
    if kind == "images":
        if not small and draw.random() < 0.05:  # more elements than one thread gets
            return (draw.randint(1, 3), 3, draw.randint(60, 160), draw.randint(60, 160))
        if draw.random() < 0.2:  # whole vectors, for masks that repeat themselves in memory
            return (draw.randint(1, 4), draw.randint(1, 3), 8, draw.choice((8, 16)))
        return (draw.randint(1, 4), draw.randint(1, 4), draw.randint(1, most), draw.randint(1, most))
    if kind == "anything":
        return tuple(draw.randint(0, most) for _ in range(draw.randint(0, 3)))
    if kind == "five":
        return tuple(draw.randint(1, 3) for _ in range(5))
    return (draw.randint(0, 70 if small else 3000),)


def draw_values(
    draw: random.Random, generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, center: float = 0.0
) -> Tensor:
    """Draw pixels around `center`, numbers of every size, or pixels with NaN, infinities, zeros and extremes."""
    host = torch.device("cpu")
    if dtype == torch.uint8:
        return pixels(shape, dtype, host, generator)
    values = pixels(shape, torch.float64, host, generator) - center
    kind = draw.choice(("pixels", "pixels", "specials", "specials", "every size"))
    if kind == "every size":
        values = values * 10.0 ** (-45 + 83 * torch.rand(shape, generator=generator, dtype=torch.float64))
    values = values.to(dtype)
    if kind == "specials":
        most, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
        specials = (NAN, INF, -INF, most, -most, least, -least * torch.finfo(dtype).eps, 0.0, -0.0)
        table = torch.tensor(specials, dtype=torch.float64).to(dtype)
        which = torch.randint(0, 4 * len(specials), shape, generator=generator)
        values = torch.where(which < len(specials), table[which.clamp(max=len(specials) - 1)], values)
    return values


def draw_budget(draw: random.Random, generator: torch.Generator, shape: tuple[int, ...]) -> float | Tensor:
    """Draw a radius or a step: a float, or a float32 tensor of shape () or (B,), in which any value is allowed."""
    kind = draw.choice(("float", "scalar", "per image", "per image"))
    if kind == "float" or (kind == "per image" and not shape):
        return draw.choice((*RADII, draw.uniform(0, 0.3), draw_number(draw, 1e-45, 1e38)))
    values = 0.3 * torch.rand(shape[:1] if kind == "per image" else (), generator=generator)
    if draw.random() < 0.3:
        specials = torch.tensor((NAN, INF, -INF, -0.1, 0.0, 3e38, 1e-45))
        which = torch.randint(0, 2 * len(specials), values.shape, generator=generator)
        values = torch.where(which < len(specials), specials[which.clamp(max=len(specials) - 1)], values)
    return values


def draw_mask(draw: random.Random, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor | None:
    """Draw None, or a mask that broadcasts to the shape: bool, or shares, some of them NaN or outside [0, 1]."""
    if draw.random() < 0.5:
        return None
    kept = shape[draw.randint(0, len(shape)) :] if draw.random() < 0.7 else shape
    kept = tuple(1 if draw.random() < 0.3 else size for size in kept)
    dtype = draw.choice((torch.bool, torch.bool, torch.float32, *FLOAT_DTYPES))
    values = torch.rand(kept, generator=generator, dtype=torch.float64)
    if dtype == torch.bool:
        return values < draw.choice((0.0, 0.5, 0.5, 2.0))
    kind = draw.choice(("shares", "ends", "specials", "bad"))
    if kind == "ends":
        values = values.round()
    if kind in ("specials", "bad"):
        table = torch.tensor((NAN, 0.0, 1.0, -0.0, 1e-45, 1e-300) if kind == "specials" else (1.5, -0.1, INF, -INF))
        which = torch.randint(0, 4 * len(table), kept, generator=generator)
        values = torch.where(which < len(table), table.double()[which.clamp(max=len(table) - 1)], values)
    return values.to(dtype)


def draw_rng(draw: random.Random) -> tuple[int, int]:
    return tuple(draw.choice((*SEEDS, draw.randint(-(2**63), 2**63 - 1))) for _ in range(2))
