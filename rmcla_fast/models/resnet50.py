"""ResNet-50 for 224x224 images, from torchvision or else timm, after a normalisation layer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from torch import nn

from rmcla_fast.models.normalize import Normalize

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet50(
    num_classes: int,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a randomly initialised ResNet-50; mean and std default to those of ImageNet.

    Raises:
        ValueError: channels other than 3.
        ImportError: neither torchvision nor timm can be imported.
    """
    if channels != 3:
        raise ValueError(f"channels must be 3 for resnet50; got {channels}")
    normalize = Normalize(channels, IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std)
    try:  # importing torchvision raises RuntimeError with a torch that it was not built for
        network = importlib.import_module("torchvision.models").resnet50(num_classes=num_classes)
    except (ImportError, RuntimeError):
        try:
            network = importlib.import_module("timm").create_model("resnet50", num_classes=num_classes)
        except (ImportError, RuntimeError):
            raise ImportError(
                "model 'resnet50' comes from torchvision or timm, and neither can be imported; pip install torchvision"
            ) from None
    return nn.Sequential(normalize, network)
