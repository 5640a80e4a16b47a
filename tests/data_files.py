"""Data sets in small, as the files that they come in, and an object whose pickle must not run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def write_cifar10(root: Path, per_file: int = 20) -> Path:
    """A small CIFAR-10 in the Python version's layout, keys and protocol."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        images = draw.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = [k % 10 for k in range(per_file)]
        content = {b"data": images, b"labels": labels, b"batch_label": b"x", b"filenames": [b"a.png"] * per_file}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


def write_cifar100(root: Path) -> Path:
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
    """A PNG of one value, but for a pixel of the next."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.full((size[1], size[0], channels), value, np.uint8)
    pixels[0, 1] = value + 1
    Image.fromarray(pixels.squeeze() if mode == "L" else pixels, mode).save(path)
    return path


def write_folder(root: Path) -> Path:
    """An image folder of two classes, whose images all differ."""
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            for image in range(3):
                write_image(root / split / name / f"{image}.png", 50 * k + image)
    return root


class Malicious:
    """Unpickled by the standard unpickler, it makes the file `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)
