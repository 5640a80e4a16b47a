"""Writers of small data sets in their file formats, and an object whose pickle must not run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
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


def write_tiny_imagenet(root: Path) -> Path:
    """Write a Tiny ImageNet of 3 classes, with 4 training and 2 validation JPEGs each; return its own folder.

    As in the distributed one, wnids.txt and val_annotations.txt are not sorted by class, and some images are grey. Each
    image has one level: 60 c + 4 k for the k-th training image of class c, and 2 more for the k-th validation image.
    """
    from PIL import Image

    folder = root / "tiny-imagenet-200"
    names = ("n01443537", "n01629819", "n02099601")
    annotations = {}

    def write(path: Path, level: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (64, 64), (level, level, level))
        (image.convert("L") if level in (64, 66) else image).save(path)

    for c, name in enumerate(names):
        for k in range(4):
            write(folder / "train" / name / "images" / f"{name}_{k}.JPEG", 60 * c + 4 * k)
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")
        for k in range(2):
            file = f"val_{3 * k + (2 * c + 1) % 3}.JPEG"
            write(folder / "val" / "images" / file, 60 * c + 4 * k + 2)
            annotations[file] = name
    lines = (f"{file}\t{annotations[file]}\t0\t32\t44\t62\n" for file in sorted(annotations))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{name}\n" for name in reversed(names)))
    (folder / "words.txt").write_text("".join(f"{name}\ta kind of animal\n" for name in names))
    write(folder / "test" / "images" / "test_0.JPEG", 0)
    return folder


def write_extra(path: Path, count: int = 300, save: Callable[..., None] = np.savez, **changes: Any) -> Path:
    """Write the first training images of the digits as more training images; `changes` replace or add arrays."""
    from rmcla_fast import data

    digits = data.load("digits").train
    images, labels = digits.images[:count].permute(0, 2, 3, 1).numpy(), digits.labels[:count].numpy()
    save(path, **({"image": images, "label": labels} | changes))
    return path


class Malicious:
    """An object that creates the file `target` when the standard unpickler loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)
