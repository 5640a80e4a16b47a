"""Small networks of timm, transformers and torchvision for the tests, and the reason where they cannot run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rmcla_fast import models

DIGITS = ("--data", "digits", "--images-per-class", 10, "--batch-size", 32)
QUICK = ("--epochs", 1, "--device", "cpu", "--monitor-images", 0, "--threads", 1)


def library(package: str) -> ModuleType:
    """Import and return a library; skip the test, with the reason, if it is missing or was built for another torch."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package} cannot be imported with torch {torch.__version__}: {str(error).splitlines()[0]}")


def hugging_face_folder(
    folder: Path, *, kind: str = "vit", processor: dict[str, Any] | None = None, **changes: Any
) -> nn.Module:
    """Write a tiny network of transformers, for 8x8 images of one channel and 7 classes, and return it."""
    transformers = library("transformers")
    library("safetensors")
    torch.manual_seed(0)
    if kind == "vit":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        sizes |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 7}
        network = transformers.ViTForImageClassification(transformers.ViTConfig(**{**sizes, **changes}))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": 1, "num_labels": 7}
        network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**{**sizes, **changes}))
    network.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return network


def in_hugging_face_cache(home: Path, name: str, weights: dict[str, torch.Tensor]) -> Path:
    """Put weights into a cache of Hugging Face as its client lays it out, and return the file."""
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    library("safetensors.torch").save_file(weights, snapshot / "model.safetensors")  # type: ignore[attr-defined]
    return snapshot / "model.safetensors"


def image_folder(root: Path, classes: str = "abc", size: int = 32) -> Path:
    """Write a few images of noise, of which each class has another colour, as the data set "folder"."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for place, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = rng.integers(0, 100, (size, size, 3), dtype=np.uint8)
                pixels[..., place % 3] += 100
                Image.fromarray(pixels).save(root / split / name / f"{image}.png")
    return root


def small_cnn_weights(classes: int = 10, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return a state dict for the network of the digits."""
    torch.manual_seed(seed)
    return models.create("small-cnn", classes, 1).state_dict()


def saved(content: Any, path: Path, **options: Any) -> Path:
    """Write a file with torch.save, and return its path."""
    torch.save(content, path, **options)
    return path
