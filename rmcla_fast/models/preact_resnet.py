"""Pre-activation ResNet-18 for 32x32 images (He et al., "Identity mappings in deep residual networks", ECCV 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from rmcla_fast.models.normalize import Normalize


class PreActBlock(nn.Module):
    """A residual block of two times batch norm, ReLU and convolution.

    If input and output differ in shape, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = functional.relu(self.norm1(x), inplace=True)
        residual = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv1(activated)
        return self.conv2(functional.relu(self.norm2(out), inplace=True)) + residual


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18: images (B, C, H, W) in [0, 1] to logits (B, num_classes).

    It has four stages of 64, 128, 256 and 512 channels, with two blocks each.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(channels, mean, std)
        self.stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, outputs in enumerate((64, 128, 256, 512)):
            blocks += [PreActBlock(inputs, outputs, stride=1 if stage == 0 else 2), PreActBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.normalize(images)))
        return self.classifier(functional.relu(self.norm(x), inplace=True).mean((2, 3)))
