"""Arguments of an operator in memory of the fuzzer: any layout, guard zones around them, and `out` over any of them."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

POISON = 0xFF  # bytes of ones are NaN in every float dtype, -1 in int64 and 255 in uint8
GUARD = 256  # bytes, more than the widest vector or pack
INPUT_LAYOUTS = ("contiguous", "channels_last", "permuted", "gaps", "odd", "expanded", "windows")
OUTPUT_LAYOUTS = INPUT_LAYOUTS[:5]  # in these, every element has a place of its own
SHIFTS = (0, 0, 0, 0, 1, -1, 2, -2, 4, -4, 7, 8, -16, 32)


def draw_strides(draw: random.Random, shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return the strides of a tensor of this shape.

    "permuted" has its dimensions in any order, and "gaps" has unused memory between them, too. "odd" has any stride in
    dimensions of size 1. "expanded" repeats a dimension, and in "windows" neighbours of the first dimension overlap.
    """
    order = list(range(len(shape)))
    if layout == "channels_last" and len(shape) == 4:
        order = [0, 2, 3, 1]
    if layout in ("permuted", "gaps"):
        draw.shuffle(order)
    strides, next_stride = [0] * len(shape), draw.choice((1, 2, 3)) if layout == "gaps" else 1
    for dimension in reversed(order):
        strides[dimension] = next_stride
        next_stride *= max(shape[dimension], 1)
        next_stride += draw.choice((0, 0, 1, 5)) if layout == "gaps" else 0
    if layout == "odd":
        strides = [draw.randrange(60) if size == 1 else stride for size, stride in zip(shape, strides, strict=True)]
    if layout == "expanded" and shape:
        strides[draw.choice((0, 0, draw.randrange(len(shape))))] = 0
    if layout == "windows" and shape:
        strides[0] = draw.randint(1, max(strides[0], 1))
    return tuple(strides)


class _Placed(NamedTuple):
    """A tensor that is to be placed: its values, and the strides that it gets."""

    name: str
    values: Tensor
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Return the number of elements from the first to the last one in memory."""
        if not self.values.numel():
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.values.shape, self.strides, strict=True))


class Arguments:
    """The tensors of one call. Use `add` for each input, then `build`, the call, and `check`."""

    def __init__(self, draw: random.Random, device: torch.device) -> None:
        self.draw = draw
        self.device = device
        self.tensors: dict[str, Tensor] = {}
        self.copies: dict[str, Tensor] = {}  # the values of the inputs before the call, on the host
        self.out: Tensor | None = None
        self._inputs: list[_Placed] = []
        self._starts: dict[str, int] = {}  # the first byte of each tensor in its block
        self._blocks: list[Tensor] = []
        self._before: list[Tensor] = []
        self._block_of_out = -1

    def add(self, name: str, values: Tensor, layouts: tuple[str, ...] = INPUT_LAYOUTS) -> None:
        """Add an input with these values, in one of the layouts. Overlapping layouts use only some of the values."""
        strides = draw_strides(self.draw, tuple(values.shape), self.draw.choice(("contiguous", *layouts)))
        self._inputs.append(_Placed(name, values, strides))

    def build(self, out_shape: tuple[int, ...] = (), out_dtype: torch.dtype | None = None) -> None:
        """Place the inputs in memory, each in a block of its own or all in one.

        Around each tensor is a guard zone, or else its block ends with it, for AddressSanitizer to notice what is read
        beyond. With `out_dtype` there may be an `out`: in a block of its own, or over an input, possibly shifted.
        """
        draw = self.draw
        together = draw.random() < 0.15
        groups = [self._inputs] if together else [[placed] for placed in self._inputs]
        kind = draw.choice(("none", "none", "own", "over", "over")) if out_dtype is not None else "none"
        output = victim = None
        if kind != "none":
            assert out_dtype is not None
            values = torch.empty(out_shape, dtype=out_dtype)
            output = _Placed("out", values, draw_strides(draw, out_shape, draw.choice(OUTPUT_LAYOUTS)))
        if kind == "over":
            assert output is not None
            victim = draw.choice(self._inputs)
            same_places = victim.values.shape == output.values.shape and victim.span >= victim.values.numel()
            if same_places and draw.random() < 0.7:
                output = output._replace(strides=victim.strides)
        room = output.span * output.values.element_size() if output is not None else 0
        guard = draw.choice((GUARD, GUARD, 0)) if victim is None and not together else GUARD
        for group in groups:
            self._place(group, guard + (room if victim in group else 0))
        if output is not None and victim is None:
            self._place([output], guard)
            self._block_of_out = len(self._blocks) - 1
            self.out = self.tensors.pop("out")
        elif output is not None and victim is not None:
            self._block_of_out = next(i for i, group in enumerate(groups) if victim in group)
            block, width = self._blocks[self._block_of_out], output.values.element_size()
            start = self._starts[victim.name] + width * draw.choice((*SHIFTS, draw.randint(-output.span, output.span)))
            start = min(max(start, GUARD), block.numel() - GUARD - room)
            self._starts["out"] = start - start % width
            self.out = self._view(block, self._starts["out"], output)
        self.copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        self._before = [block.clone() for block in self._blocks]

    def check(self, out_is_unchanged: bool = False) -> None:
        """Check that the call wrote into `out` alone."""
        for number, (block, before) in enumerate(zip(self._blocks, self._before, strict=True)):
            changed = block != before
            if self.out is not None and number == self._block_of_out and not out_is_unchanged:
                mask, filled = torch.zeros_like(block), block.new_full((self.out.element_size(),), POISON)
                placed = _Placed("out", filled.view(self.out.dtype)[0].expand(self.out.shape), self.out.stride())
                self._view(mask, self._starts["out"], placed).copy_(placed.values)
                changed &= mask == 0
            assert not bool(changed.any()), (
                f"{int(changed.sum())} bytes outside of out were written, the first one at "
                f"{int(changed.nonzero()[0]) - GUARD} of block {number} of {[placed.name for placed in self._inputs]}"
            )

    def _place(self, group: list[_Placed], margin: int) -> None:
        """Allocate a block for the tensors, one after the other with guard zones between, and write their values."""
        starts, end = [], margin
        for placed in group:
            width = placed.values.element_size()
            start = -(-end // 64) * 64 + width * self.draw.choice((0, 0, 1, self.draw.randrange(64 // width)))
            starts.append(start)
            end = start + placed.span * width + GUARD
        size = end - GUARD + margin
        block = torch.full((size + (-size % 8 if margin else 0),), POISON, dtype=torch.uint8, device=self.device)
        self._blocks.append(block)
        for placed, start in zip(group, starts, strict=True):
            if placed.span < placed.values.numel():  # some elements share memory, so the memory is filled in its order
                memory = placed._replace(values=placed.values.flatten()[: placed.span], strides=(1,))
                self._view(block, start, memory).copy_(memory.values)
            self._starts[placed.name] = start
            view = self._view(block, start, placed)
            if placed.span >= placed.values.numel():
                view.copy_(placed.values)
            self.tensors[placed.name] = view

    @staticmethod
    def _view(block: Tensor, start: int, placed: _Placed) -> Tensor:
        """Return the tensor's view of the block from byte `start` on."""
        values = placed.values
        return block.view(values.dtype).as_strided(values.shape, placed.strides, start // values.element_size())


def draw_number(draw: random.Random, smallest: float, largest: float) -> float:
    """Draw a positive number, uniform in its logarithm."""
    return math.exp(draw.uniform(math.log(smallest), math.log(largest)))
