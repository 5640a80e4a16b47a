"""Wide ResNet (Zagoruyko and Komodakis, BMVC 2016).

It has leaky ReLUs with slope 0.1, as in the public code of "Bilateral Adversarial Training".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from rmcla_fast.models.normalize import Normalize

SLOPE = 0.1


def _activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE, inplace=True)


class WideBlock(nn.Module):
    """A residual block of two times batch norm, leaky ReLU and convolution.

    If input and output differ in width, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        activated = _activate(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(_activate(self.norm2(self.conv1(activated)))) + residual


class WideResNet(nn.Module):
    """Wide ResNet: images (B, C, H, W) in [0, 1] to logits (B, num_classes).

    It has three stages of (depth - 4) / 6 blocks, with 16, 32 and 64 times `width` channels.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        depth: int = 28,
        width: int = 10,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n at least 1; got {depth}")
        self.normalize = Normalize(channels, mean, std)
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * 2**stage * width
            for block in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.normalize(images)))
        return self.classifier(_activate(self.norm(x)).mean((2, 3)))
