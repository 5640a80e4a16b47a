"""ResNet-50 for 224x224 images, torchvision's or timm's, whichever is installed, with normalisation in front."""

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
    """A randomly initialised ResNet-50; mean and std default to ImageNet's.

    Raises:
        ValueError: channels other than 3. ImportError: neither package can be imported.
    """
    if channels != 3:
        raise ValueError(f"channels must be 3 for resnet50; got {channels}")
    normalize = Normalize(channels, IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std)
    try:  # torchvision's import raises RuntimeError next to a torch it was not built for
        network = importlib.import_module("torchvision.models").resnet50(num_classes=num_classes)
    except (ImportError, RuntimeError):
        try:
            network = importlib.import_module("timm").create_model("resnet50", num_classes=num_classes)
        except (ImportError, RuntimeError):
            raise ImportError(
                "model 'resnet50' is torchvision's or timm's, and neither can be imported; pip install torchvision"
            ) from None
    return nn.Sequential(normalize, network)
