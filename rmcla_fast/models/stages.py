"""The four stages of residual blocks that both kinds of ResNet-18 have."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def stage_widths(width: int) -> tuple[int, int, int, int]:
    """Return the number of channels of each stage; the first has `width`.

    Raises:
        ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width}")
    return width, 2 * width, 4 * width, 8 * width


def stages(block: Callable[[int, int, int, str], nn.Module], widths: tuple[int, ...], activation: str) -> nn.Sequential:
    """Return two blocks for each stage; every stage but the first halves height and width of its input.

    The function `block` makes a block from its input channels, its output channels, its stride and its activation.
    """
    blocks: list[nn.Module] = []
    inputs = widths[0]
    for stage, outputs in enumerate(widths):
        blocks += [block(inputs, outputs, 1 if stage == 0 else 2, activation), block(outputs, outputs, 1, activation)]
        inputs = outputs
    return nn.Sequential(*blocks)
