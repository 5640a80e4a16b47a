"""Writers of small data sets in their file formats, and an object whose pickle must not run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def write_cifar10(root: Path) -> Path:
    """Write a CIFAR-10 of 20 images per file, with the layout, keys and pickle protocol of the Python version."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    per_file = 20
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        images = draw.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = [k % 10 for k in range(per_file)]
        content = {b"data": images, b"labels": labels, b"batch_label": b"x", b"filenames": [b"a.png"] * per_file}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


def write_cifar100(root: Path) -> Path:
    """Write a small CIFAR-100 in the layout of the Python version."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        content = {
            "data": np.zeros((200, 3072), np.uint8),
            "fine_labels": [k % 100 for k in range(200)],
            "coarse_labels": [0] * 200,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
    return root


def write_image(path: Path, value: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    """Write a PNG whose pixels are all `value`, except one that is `value + 1`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.full((size[1], size[0], channels), value, np.uint8)
    pixels[0, 1] = value + 1
    Image.fromarray(pixels.squeeze() if mode == "L" else pixels, mode).save(path)
    return path


def write_folder(root: Path) -> Path:
    """Write an image folder of two classes, in which no two images of a split are equal."""
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            for image in range(3):
                write_image(root / split / name / f"{image}.png", 50 * k + image)
    return root


class Malicious:
    """An object that creates the file `target` when the standard unpickler loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)
