"""Networks by name: `create("preact-resnet18", num_classes=10)`. They map images in [0, 1] to logits.

A name may also be that of a network of timm, transformers or torchvision, or of a function of your own.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rmcla_fast.models import factory, libraries
from rmcla_fast.models.library import Images, Pretrained
from rmcla_fast.models.normalize import Normalize
from rmcla_fast.models.preact_resnet import PreActResNet18
from rmcla_fast.models.resnet18 import ResNet18
from rmcla_fast.models.resnet50 import resnet50
from rmcla_fast.models.small_cnn import SmallCNN
from rmcla_fast.models.wide_resnet import WideResNet
from rmcla_fast.text import did_you_mean

__all__ = [
    "Normalize",
    "PreActResNet18",
    "ResNet18",
    "SmallCNN",
    "WideResNet",
    "create",
    "names",
    "resnet50",
]


def _wide_resnet_28(num_classes: int, channels: int, **normalization: Any) -> nn.Module:
    return WideResNet(num_classes, channels, depth=28, width=10, **normalization)


def _wide_resnet_34(num_classes: int, channels: int, **normalization: Any) -> nn.Module:
    return WideResNet(num_classes, channels, depth=34, width=10, **normalization)


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet18-silu": functools.partial(ResNet18, activation="silu"),
    "preact-resnet18": PreActResNet18,
    "preact-resnet18-silu": functools.partial(PreActResNet18, activation="silu"),
    "wrn-28-10": _wide_resnet_28,
    "wrn-34-10": _wide_resnet_34,
    "resnet50": resnet50,
}


def names() -> tuple[str, ...]:
    """Return the names of the networks of this package, which `create` knows in addition to those with a colon."""
    return tuple(_MODELS)


def is_factory(name: str) -> bool:
    """Return whether the name stands for code of the user, "package.module:factory".

    A run that was trained with it must get the name again, since a checkpoint never decides what code is imported.
    """
    return ":" in name and not libraries.of_library(name)


def create(
    name: str,
    num_classes: int,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Return a new, randomly initialised network.

    Args:
        name: one of `names()`; "timm:NAME", "hf:NAME" (a folder, or a name in the cache of Hugging Face) or
            "torchvision:NAME"; or "package.module:factory" for your own. Your factory is called with those of
            num_classes, channels, mean and std that it has as parameters. With `**kwargs` it also gets num_classes.
            It returns a module that maps images in [0, 1] to logits.
        num_classes: the number of logits per image; at least 2.
        channels: the number of channels of an image.
        mean, std: one number per channel, in the unit of [0, 1] images. The network computes (images - mean) / std, and
            keeps both in its state_dict. None means 0.5 and 0.5 (for resnet50, the statistics of ImageNet; for a
            network of a library, those of its configuration if they have a number for each channel).
        image_size: the height and width of the images, for a network of timm or transformers that is made for images
            of one size, such as a vision transformer. None leaves the size to the library.

    Raises:
        TypeError, ValueError: an unknown name (the message suggests a similar one), a bad number, a factory that is
            missing, needs other arguments, raises an error or does not return a module, or a network that the library
            cannot make.
        ImportError: the package of a network is not installed (the message has the install command).
    """
    for field, value, least in (("num_classes", num_classes, 2), ("channels", channels, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{field} must be an int; got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{field} must be at least {least}; got {value}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a str; got {type(name).__name__}")
    sizes = image_size if isinstance(image_size, (tuple, list)) else ()
    if image_size is not None and not (len(sizes) == 2 and all(isinstance(one, int) and one > 0 for one in sizes)):
        raise ValueError(f"image_size must be a height and a width; got {image_size}")
    arguments = {"num_classes": num_classes, "channels": channels, "mean": mean, "std": std}
    if libraries.of_library(name):
        return libraries.create(name, Images(num_classes, channels, image_size), mean, std)
    if ":" in name:
        return _from_factory(name, arguments)
    if name not in _MODELS:
        hint = did_you_mean(name, _MODELS)
        raise ValueError(
            f"no model is called {name!r}; {hint}there are {', '.join(_MODELS)}, timm:NAME, hf:NAME, torchvision:NAME "
            "and package.module:factory"
        )
    return _MODELS[name](**arguments)


def _from_factory(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return what a factory makes. One that is not there may be the misspelt name of a library."""
    try:
        return factory.create(name, arguments)
    except factory.NotFound as error:
        prefix, _, rest = name.partition(":")
        near = difflib.get_close_matches(prefix.lower(), libraries.LIBRARIES, n=1)
        raise ValueError(f"{error}; did you mean {f'{near[0]}:{rest}'!r}?" if near else str(error)) from error


def pretrained(name: str, num_classes: int, channels: int = 3, image_size: tuple[int, int] | None = None) -> Pretrained:
    """Return the weights that timm, transformers or torchvision has for a network, from the user's own cache.

    The arguments are those of `create`. Nothing is loaded from the network.

    Raises:
        ValueError: the network is of no library, or its weights are not in the cache (the message has the command that
            loads them).
        ImportError: the library is not installed.
    """
    if not libraries.of_library(name):
        raise ValueError(f"only timm:NAME, hf:NAME and torchvision:NAME have pretrained weights; got {name!r}")
    return libraries.pretrained(name, Images(num_classes, channels, image_size))


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimizer groups in which only weights decay, as in the paper; biases and normalisation scales do not."""
    decayed: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() > 1 else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
