"""Inputs that hurt, made once and used by every test: shapes, layouts, values, and memory that was poisoned before."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "strided", "offset", "expanded")
IMAGE_LAYOUTS = (*LAYOUTS, "channels_last", "sliced_channels_last")
MANY = 1_000_001  # odd, and more than any vector, block or cache holds

# Around the widths of vectors, warps and blocks, and the class counts of real data sets.
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
    """NaN, and for integers a value that no result has: -77 as a class, 211 as a pixel."""
    return float("nan") if dtype.is_floating_point else (211 if dtype == torch.uint8 else -77)


def poisoned(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer in which an element that nobody writes shows."""
    return torch.full(tuple(shape), poison_value(dtype), dtype=dtype, device=device)


def poison_free_memory(elements: int, device: torch.device) -> None:
    """Fills with NaN, and frees, blocks of the sizes that outputs of `elements` take, for the allocator to reuse."""
    blocks = [
        torch.full((elements * width // 4,), float("nan"), device=device) for width in (2, 4, 8) for _ in range(2)
    ]
    del blocks


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The tensor in another layout, with poison where a kernel has no business; "expanded" repeats the first image."""
    if tensor.dim() == 0 or layout == "contiguous":
        return tensor.contiguous()
    if layout == "expanded":
        return tensor[:1].contiguous().expand(tensor.shape)
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":  # one element off any vector's alignment
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


# Rows of finite logits by name, float64 of which the test takes the nearest of its dtype.
LOGITS: dict[str, Callable[[torch.Generator, tuple[int, int]], Tensor]] = {
    "normal": _normal,
    "spread": lambda g, s: 30 * _normal(g, s),
    "close": lambda g, s: 1e-3 * _normal(g, s),
    "shifted": lambda g, s: _normal(g, s) + 1e4,  # the log-sum-exp must cancel before it rounds
    "equal": lambda g, s: torch.full(s, 0.25, dtype=torch.float64),
    "few_values": lambda g, s: torch.randint(-1, 2, s, generator=g).double(),  # ties everywhere, at either end
    "saturated": lambda g, s: 1e4 * (2.0 * torch.randint(0, 2, s, generator=g).double() - 1),
    "one_saturated": lambda g, s: _normal(g, s).scatter(1, torch.randint(0, s[1], (s[0], 1), generator=g), 1e4),
    "huge": lambda g, s: 6e4 * _normal(g, s).clamp(-1, 1),  # near the end of float16
    "tiny": lambda g, s: 1e-7 * _normal(g, s),  # subnormal in float16
    "subnormal": lambda g, s: 1e-40 * _normal(g, s),  # in float32 and bfloat16, 0 in float16
    "enormous": lambda g, s: 1e30 * _normal(g, s),  # float16 has no room for it: see `logits`
}


class LogitCase(NamedTuple):
    """One row-operator input, drawn by hypothesis and built from its seed."""

    batch: int
    classes: int
    dtype: torch.dtype
    values: str
    layout: str
    seed: int

    def logits(self, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        name = "huge" if self.values == "enormous" and self.dtype == torch.float16 else self.values
        values = LOGITS[name](generator, (self.batch, self.classes))
        return lay_out(values.to(self.dtype).to(device), self.layout)

    def classes_drawn(self, device: torch.device, salt: int = 0) -> Tensor:
        """(B,) int64 in [0, C), in every other element of a poisoned buffer for every other seed."""
        generator = torch.Generator().manual_seed(self.seed + 1 + salt)
        labels = torch.randint(0, self.classes, (self.batch,), generator=generator).to(device)
        return lay_out(labels, "strided" if self.seed % 2 else "contiguous")


def logit_cases(interpreted: bool) -> st.SearchStrategy[LogitCase]:
    """Random shapes, dtypes, layouts and values; `interpreted` keeps them small."""
    if interpreted:
        batches, classes = (3, 1, 2, 4, 0), st.one_of(st.integers(2, 20), st.sampled_from(SMALL_CLASS_COUNTS))
    else:
        batches, classes = (3, 1, 2, 4, 5, 7, 9, 0), st.one_of(st.integers(2, 300), st.sampled_from(CLASS_COUNTS))
    return st.builds(
        LogitCase,
        st.sampled_from(batches),  # integers would come out as 0 almost every other time
        classes,
        st.sampled_from(FLOAT_DTYPES),
        st.sampled_from(tuple(LOGITS)),
        st.sampled_from(LAYOUTS),
        st.integers(0, 2**31),
    )


def image_shapes(interpreted: bool) -> st.SearchStrategy[tuple[int, ...]]:
    """Any number of dimensions from none to five, images foremost."""
    most = 5 if interpreted else 9
    images = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, most), st.integers(1, most))
    anything = st.lists(st.integers(0, most), min_size=0, max_size=3).map(tuple)
    five = st.tuples(*[st.integers(1, 3)] * 5)
    flat = st.tuples(st.integers(0, 70 if interpreted else 700))
    return st.one_of(images, images, anything, five, flat)


def pixels(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
    """Uniform in [-0.1, 1.1], or all bytes for uint8."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator).to(dtype).to(device)
    return (1.2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1).to(dtype).to(device)


def with_specials(tensor: Tensor, generator: torch.Generator, specials: tuple[float, ...]) -> Tensor:
    """About one element in ten replaced by each of `specials`."""
    draw = torch.rand(tensor.shape, generator=generator).to(tensor.device)
    for place, value in enumerate(specials):
        tensor = torch.where((draw >= place / 10) & (draw < (place + 1) / 10), torch.tensor(value).to(tensor), tensor)
    return tensor
