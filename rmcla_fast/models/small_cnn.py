"""A small convolutional network for small images: digits of 8x8 pixels, and pictures of 28x28 or 32x32."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rmcla_fast.models.normalize import Normalize


class SmallCNN(nn.Module):
    """Four 3x3 convolutions in two resolutions with batch norm, then one hidden layer; any image of at least 8x8.

    (B, C, H, W) in [0, 1] -> (B, num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Normalize(channels, mean, std),
            *_convolution(channels, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(nn.Linear(2 * width * 16, 128), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.features(images)))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
