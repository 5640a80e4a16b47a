"""Pre-activation ResNet-18 for images of 32x32 or 64x64.

It is that of He et al., "Identity mappings in deep residual networks", ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rmcla_fast.models.activation import activation_of
from rmcla_fast.models.normalize import Normalize
from rmcla_fast.models.stages import stage_widths, stages


class PreActBlock(nn.Module):
    """A residual block of two times batch norm, activation and convolution.

    If input and output differ in shape, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str = "relu") -> None:
        super().__init__()
        self.activate = activation_of(activation)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv1(activated)
        return self.conv2(self.activate(self.norm2(out))) + residual


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18: images (B, C, H, W) in [0, 1] to logits (B, num_classes).

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
        self.blocks = stages(PreActBlock, widths, activation)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.normalize(images)))
        return self.classifier(self.activate(self.norm(x)).mean((2, 3)))
