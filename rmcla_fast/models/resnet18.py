"""ResNet-18 for images of 32x32 or 64x64 (He et al., "Deep residual learning for image recognition", CVPR 2016).

As is usual for small images, its stem is a 3x3 convolution, and there is no max pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rmcla_fast.models.activation import activation_of
from rmcla_fast.models.normalize import Normalize
from rmcla_fast.models.stages import stage_widths, stages


class BasicBlock(nn.Module):
    """A residual block of two times convolution and batch norm; the second activation comes after the sum.

    If input and output differ in shape, the shortcut is a 1x1 convolution with batch norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str = "relu") -> None:
        super().__init__()
        self.activate = activation_of(activation)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        out = self.activate(self.norm1(self.conv1(x)))
        return self.activate(self.norm2(self.conv2(out)) + residual)


class ResNet18(nn.Module):
    """ResNet-18: images (B, C, H, W) in [0, 1] to logits (B, num_classes).

    It has four stages of 1, 2, 4 and 8 times `width` channels, with two blocks each. `activation` is "relu" or "silu".

    Raises:
        ValueError: a width below 1, another activation, or a mean or std that does not fit the channels.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        width: int = 64,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.activate = activation_of(activation)
        widths = stage_widths(width)
        self.normalize = Normalize(channels, mean, std)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = stages(BasicBlock, widths, activation)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.activate(self.norm(self.stem(self.normalize(images))))
        return self.classifier(self.blocks(x).mean((2, 3)))
