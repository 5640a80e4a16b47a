"""What the libraries of networks have in common: what a network is made for, and where weights are kept."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from rmcla_fast.text import counted

HALVES = (0.5, 0.5, 0.5)


class Refused(ValueError):
    """A name or an argument that a library does not take; the text is the whole sentence."""


@dataclass(frozen=True)
class Images:
    """What a network is made for. `size` is (height, width), or None if it is not known."""

    num_classes: int
    channels: int
    size: tuple[int, int] | None

    def __str__(self) -> str:
        size = "" if self.size is None else f" of {self.size[0]}x{self.size[1]} pixels"
        return f"{self.num_classes} classes and images with {counted(self.channels, 'channel')}{size}"


@dataclass(frozen=True)
class Made:
    """A network of a library, and the mean and the standard deviation of the images that it was made for."""

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Pretrained:
    """The weights that a library has for a network, and the files that they were read from."""

    tensors: dict[str, Tensor]
    files: list[Path]


@dataclass(frozen=True)
class Library:
    """How to make a network of a library.

    Attributes:
        package: the name of its module.
        least: the oldest version that does it in this way.
        make: makes a network, which has random weights.
        pretrained: returns the weights that the library has for a network.
        install: the command that installs the library.
    """

    package: str
    least: str
    make: Callable[[ModuleType, str, Images], Made]
    pretrained: Callable[[ModuleType, str, Images], Pretrained]
    install: str = "pip install 'rmcla-fast[models]'"


def unknown(model: str, where: str, known: Iterable[str]) -> Refused:
    """Return the error for a name that a library does not know, with the nearest names that it knows."""
    prefix, _, name = model.partition(":")
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    hint = f"; the nearest names are {', '.join(f'{prefix}:{one}' for one in near)}" if near else ""
    return Refused(f"no model of {where} is called {name!r}{hint}")


def not_in_cache(model: str, command: str) -> Refused:
    return Refused(f"the weights of {model} are not in your cache; load them once with: {command}")


def in_torch_cache(url: str) -> Path:
    """Return the path at which torch keeps what it has loaded from the URL."""
    return Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(url).path))


def is_path(place: str) -> bool:
    """Return whether the name of a model of transformers can only be that of a folder."""
    return place.startswith(("/", ".", "~"))


def in_hugging_face(place: str, file: str) -> Path | None:
    """Return the path of a model's file, in a folder or in the cache of Hugging Face; None if it is not there."""
    folder = Path(os.path.expanduser(place))
    if folder.is_dir() or is_path(place):
        return folder / file if (folder / file).is_file() else None
    found = importlib.import_module("huggingface_hub").try_to_load_from_cache(place, file)
    return Path(found) if isinstance(found, str) else None
