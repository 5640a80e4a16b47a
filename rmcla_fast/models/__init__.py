"""Networks by name: `create("preact-resnet18", num_classes=10)`. They map images in [0, 1] to logits."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rmcla_fast.models.normalize import Normalize
from rmcla_fast.models.preact_resnet import PreActResNet18
from rmcla_fast.models.resnet18 import ResNet18
from rmcla_fast.models.resnet50 import resnet50
from rmcla_fast.models.small_cnn import SmallCNN
from rmcla_fast.models.wide_resnet import WideResNet

__all__ = ["Normalize", "PreActResNet18", "ResNet18", "SmallCNN", "WideResNet", "create", "names", "resnet50"]


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
    """Return the names that `create` knows, in addition to "package.module:factory"."""
    return tuple(_MODELS)


def create(
    name: str,
    num_classes: int,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a new, randomly initialised network.

    Args:
        name: one of `names()`, or "package.module:factory" for your own. Your factory is called with those of
            num_classes, channels, mean and std that it has as parameters. It returns a module that maps images in
            [0, 1] to logits.
        num_classes: the number of logits per image; at least 2.
        channels: the number of channels of an image.
        mean, std: one number per channel, in the unit of [0, 1] images. The network computes (images - mean) / std, and
            keeps both in its state_dict. None means 0.5 and 0.5 (for resnet50, the statistics of ImageNet).

    Raises:
        TypeError, ValueError: an unknown name (the message suggests a similar one), a bad number, a factory that is
            missing or does not return a module.
        ImportError: the package of a network is not installed (the message has the install command).
    """
    for field, value, least in (("num_classes", num_classes, 2), ("channels", channels, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{field} must be an int; got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{field} must be at least {least}; got {value}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a str; got {type(name).__name__}")
    arguments = {"num_classes": num_classes, "channels": channels, "mean": mean, "std": std}
    if ":" in name:
        return _from_factory(name, arguments)
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no model is called {name!r}; {hint}there are {', '.join(_MODELS)}, and package.module:factory"
        )
    return _MODELS[name](**arguments)


def _from_factory(name: str, arguments: dict[str, Any]) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be found: {error}") from error
    if not callable(factory):
        raise TypeError(f"model {name!r} must be a function or a class; got {type(factory).__name__}")
    taken = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        arguments = {field: value for field, value in arguments.items() if field in taken}
    model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} must return a torch.nn.Module; got {type(model).__name__}")
    return model


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimizer groups in which only weights decay, as in the paper; biases and normalisation scales do not."""
    decayed: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() > 1 else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
