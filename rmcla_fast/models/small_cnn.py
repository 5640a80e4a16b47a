"""A small convolutional network for small images, such as digits of 8x8 pixels or images of 28x28 and 32x32."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from rmcla_fast.models.normalize import Normalize


class SmallCNN(nn.Module):
    """Two 3x3 convolutions of 16 and 32 channels and a hidden layer of 100 units, without batch norm.

    It maps images (B, C, H, W) in [0, 1], of at least 8x8 pixels, to logits (B, num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Normalize(channels, mean, std),
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Sequential(nn.Linear(32 * 4 * 4, 100), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(100, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        if features.shape[2:] != (4, 4):  # images of 8x8 have 4x4 features and need no pooling
            features = functional.adaptive_avg_pool2d(features, 4)
        return self.classifier(self.hidden(features.flatten(1)))
