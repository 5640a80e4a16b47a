"""Difficult inputs that all tests use: shapes, layouts, values, and memory filled with poison."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "strided", "offset", "expanded")
IMAGE_LAYOUTS = (*LAYOUTS, "channels_last", "sliced_channels_last")
MANY = 1_000_001  # odd, and more elements than any vector, block or cache holds

# The class counts of real data sets, and numbers close to the widths of vectors, warps and blocks.
CLASS_COUNTS = (
    2,
    3,
    7,
    8,
    9,
    10,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    100,
    127,
    128,
    129,
    255,
    256,
    257,
    1000,
    1023,
    1025,
)
SMALL_CLASS_COUNTS = (2, 3, 10, 16, 17, 33)


def poison_value(dtype: torch.dtype) -> float | int:
    """Return a value that shows as wrong in a result: NaN for floats, 211 for uint8 and -77 for other integers."""
    return float("nan") if dtype.is_floating_point else (211 if dtype == torch.uint8 else -77)


def poisoned(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a buffer of poison, so that an element that is not written is noticed."""
    return torch.full(tuple(shape), poison_value(dtype), dtype=dtype, device=device)


def poison_free_memory(elements: int, device: torch.device) -> None:
    """Allocate blocks in the sizes of outputs of `elements`, fill them with NaN and free them.

    The allocator reuses them, so that an output element that is not written is NaN.
    """
    blocks = [
        torch.full((elements * width // 4,), float("nan"), device=device) for width in (2, 4, 8) for _ in range(2)
    ]
    del blocks


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the tensor in another layout, with poison in the gaps of its memory.

    "expanded" repeats the first image.
    """
    if tensor.dim() == 0 or layout == "contiguous":
        return tensor.contiguous()
    if layout == "expanded":
        return tensor[:1].contiguous().expand(tensor.shape)
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":  # one element after the alignment of vectors
        buffer = poisoned((tensor.numel() + 2,), tensor.dtype, tensor.device)
        return buffer[1:-1].view(tensor.shape).copy_(tensor)
    if layout == "channels_last":
        return (
            tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else lay_out(tensor, "transposed")
        )
    buffer = poisoned((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), tensor.dtype, tensor.device)
    if layout == "sliced_channels_last" and tensor.dim() == 4:
        buffer = buffer.contiguous(memory_format=torch.channels_last)
    return buffer[..., 1::2].copy_(tensor)


def _normal(generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _hardly_finite(generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """Return rows on both sides of 2**64, from which on a logit counts as infinite in float32."""
    return 2.0 ** torch.randint(56, 66, (shape[0], 1), generator=generator) * _normal(generator, shape)


# Rows of logits by name, in float64; the tests round them to their dtype.
LOGITS: dict[str, Callable[[torch.Generator, tuple[int, int]], Tensor]] = {
    "normal": _normal,
    "spread": lambda g, s: 30 * _normal(g, s),
    "close": lambda g, s: 1e-3 * _normal(g, s),
    "shifted": lambda g, s: _normal(g, s) + 1e4,  # the log-sum-exp must cancel before it is rounded
    "equal": lambda g, s: torch.full(s, 0.25, dtype=torch.float64),
    "few_values": lambda g, s: torch.randint(-1, 2, s, generator=g).double(),  # many ties
    "saturated": lambda g, s: 1e4 * (2.0 * torch.randint(0, 2, s, generator=g).double() - 1),
    "one_saturated": lambda g, s: _normal(g, s).scatter(1, torch.randint(0, s[1], (s[0], 1), generator=g), 1e4),
    "huge": lambda g, s: 6e4 * _normal(g, s).clamp(-1, 1),  # near the largest float16
    "tiny": lambda g, s: 1e-7 * _normal(g, s),  # subnormal in float16
    "subnormal": lambda g, s: 1e-40 * _normal(g, s),  # subnormal in float32 and bfloat16, 0 in float16
    "enormous": lambda g, s: 1e18 * _normal(g, s),  # too large for float16, which gets "huge" instead, as the next
    "hardly_finite": _hardly_finite,
}


class LogitCase(NamedTuple):
    """An input of an operator on rows; Hypothesis draws its fields, and the tensors are made from its seed."""

    batch: int
    classes: int
    dtype: torch.dtype
    values: str
    layout: str
    seed: int

    def logits(self, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        too_large = self.values in ("enormous", "hardly_finite") and self.dtype == torch.float16
        values = LOGITS["huge" if too_large else self.values](generator, (self.batch, self.classes))
        if self.values == "hardly_finite" and self.dtype == torch.float64:
            values *= 2.0 ** (960 - 64)  # a float64 logit counts as infinite from 2**960 on
        return lay_out(values.to(self.dtype).to(device), self.layout)

    def classes_drawn(self, device: torch.device, salt: int = 0) -> Tensor:
        """Return (B,) int64 classes in [0, C); for odd seeds they are strided in a poisoned buffer."""
        generator = torch.Generator().manual_seed(self.seed + 1 + salt)
        labels = torch.randint(0, self.classes, (self.batch,), generator=generator).to(device)
        return lay_out(labels, "strided" if self.seed % 2 else "contiguous")


def logit_cases(interpreted: bool) -> st.SearchStrategy[LogitCase]:
    """Return a strategy for random shapes, dtypes, layouts and values; `interpreted` keeps them small."""
    if interpreted:
        batches, classes = (3, 1, 2, 4, 0), st.one_of(st.integers(2, 20), st.sampled_from(SMALL_CLASS_COUNTS))
    else:
        batches, classes = (3, 1, 2, 4, 5, 7, 9, 0), st.one_of(st.integers(2, 300), st.sampled_from(CLASS_COUNTS))
    return st.builds(
        LogitCase,
        st.sampled_from(batches),  # st.integers would draw 0 too often
        classes,
        st.sampled_from(FLOAT_DTYPES),
        st.sampled_from(tuple(LOGITS)),
        st.sampled_from(LAYOUTS),
        st.integers(0, 2**31),
    )


def image_shapes(interpreted: bool) -> st.SearchStrategy[tuple[int, ...]]:
    """Return a strategy for shapes of zero to five dimensions, most of them of images."""
    most = 5 if interpreted else 9
    images = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, most), st.integers(1, most))
    anything = st.lists(st.integers(0, most), min_size=0, max_size=3).map(tuple)
    five = st.tuples(*[st.integers(1, 3)] * 5)
    flat = st.tuples(st.integers(0, 70 if interpreted else 700))
    return st.one_of(images, images, anything, five, flat)


def pixels(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
    """Draw pixels uniformly from [-0.1, 1.1], or from all bytes for uint8."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator).to(dtype).to(device)
    return (1.2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1).to(dtype).to(device)


def with_specials(tensor: Tensor, generator: torch.Generator, specials: tuple[float, ...]) -> Tensor:
    """Replace about one element in ten by each of `specials`."""
    draw = torch.rand(tensor.shape, generator=generator).to(tensor.device)
    for place, value in enumerate(specials):
        tensor = torch.where((draw >= place / 10) & (draw < (place + 1) / 10), torch.tensor(value).to(tensor), tensor)
    return tensor
