"""Networks of timm, transformers ("hf") and torchvision by name, such as "timm:resnet18".

A library is imported when a name of it is used, and not before. Nothing is read from the network: the weights and the
configurations of Hugging Face come from a folder or from the user's own cache. No code that a model ships is run.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.models.from_hugging_face import HUGGING_FACE
from rmcla_fast.models.from_timm import TIMM
from rmcla_fast.models.from_torchvision import TORCHVISION
from rmcla_fast.models.library import Images, Library, Pretrained, Refused
from rmcla_fast.models.normalize import Normalize

LIBRARIES = {"timm": TIMM, "hf": HUGGING_FACE, "torchvision": TORCHVISION}


class LibraryModel(nn.Module):
    """A network of a library after a normalisation layer: images in [0, 1] to logits.

    Of an answer with the attribute `logits`, which the networks of transformers give, the logits are returned.
    """

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer = self.network(self.normalize(images))
        return getattr(answer, "logits", answer)


def of_library(name: str) -> bool:
    """Return whether the name of a model, such as "timm:resnet18", is that of a network of a library."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix in LIBRARIES


def settled(name: str) -> str:
    """Return the name of a model with the absolute path of its folder, if it is "hf:FOLDER"."""
    prefix, _, place = name.partition(":")
    folder = Path(os.path.expanduser(place)) if prefix == "hf" and place else None
    return f"hf:{folder.absolute()}" if folder is not None and folder.is_dir() else name


def create(
    model: str,
    images: Images,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LibraryModel:
    """Return a new, randomly initialised network of a library; see `rmcla_fast.models.create`.

    A mean or std of None is that of the library for this network if it has a number for each channel, and else 0.5.
    """
    made = _called(lambda library, module, name: library.make(module, name, images), model, f"be made for {images}")
    own = len(made.mean) == len(made.std) == images.channels
    normalize = Normalize(
        images.channels, made.mean if mean is None and own else mean, made.std if std is None and own else std
    )
    return LibraryModel(normalize, made.network)


def pretrained(model: str, images: Images) -> Pretrained:
    """Return the weights that the library has for this network, from the user's cache.

    Raises:
        ValueError: the library has none, or they are not in the cache. The sentence has the command that loads them.
    """
    return _called(lambda library, module, name: library.pretrained(module, name, images), model, "get its weights")


def _called(call: Callable[[Library, ModuleType, str], Any], model: str, what: str) -> Any:
    """Call a function of a library, and raise what it raises as a ValueError of one sentence."""
    prefix, _, name = model.partition(":")
    if not name:
        raise ValueError(f"model {model!r} must have the name of a network after the colon")
    library = LIBRARIES[prefix]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what a library may change in a later version
        module = _imported(library, model)
        try:
            return call(library, module, name)
        except (Refused, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # each library has errors of its own
            raise ValueError(f"model {model!r} cannot {what}: {_why(error)}") from error


def _imported(library: Library, model: str) -> ModuleType:
    """Import and return the library of a model.

    Raises:
        ImportError: it is missing, is too old, or cannot be imported. The sentence has the command that installs it.
    """
    package = library.package
    needs = f"model {model!r} needs {package} {library.least} or later, "
    try:
        module = importlib.import_module(package)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torchvision raises RuntimeError with a torch that it was not built for
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise ImportError(f"{needs}which is not installed; {library.install}") from error
        if isinstance(error, ModuleNotFoundError):
            raise ImportError(f"{needs}which cannot be imported ({_why(error)}); {library.install}") from error
        raise ImportError(
            f"{needs}which cannot be imported with torch {torch.__version__} ({_why(error)}); install a torch and a "
            "torchvision that belong together: pip install --force-reinstall torch torchvision"
        ) from error
    version = str(getattr(module, "__version__", library.least))
    if _numbers(version) < _numbers(library.least):
        raise ImportError(
            f"{needs}and {version} is installed; {library.install.replace('install', 'install --upgrade', 1)}"
        )
    return module


def _why(error: BaseException) -> str:
    """Return the first line of an error, and that of the error that it came from."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = [(str(one).strip().splitlines() or [type(one).__name__])[0][:300] for one in (error, first)]
    return lines[0] if lines[0] == lines[1] else f"{lines[0]} ({lines[1]})"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
