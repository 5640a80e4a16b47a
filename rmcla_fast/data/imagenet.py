"""ImageNet's train and val folders.

Training images are decoded when they are needed: a random crop of 8 to 100 % of the area with an aspect ratio of 3/4 to
4/3 (Szegedy et al., CVPR 2015), resized to 224x224 and flipped half of the time. Held-out and test images are resized
to a shorter side of 256 and cropped to the middle 224x224. Those of the test split are decoded once, into a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rmcla_fast.data.cache import Progress, pack
from rmcla_fast.data.folder import list_splits
from rmcla_fast.data.images import converted, noting_unreadable, open_image, unreadable_error
from rmcla_fast.data.splits import DataSplits, ImageSet, StreamedSet
from rmcla_fast.errors import need

if TYPE_CHECKING:
    from PIL import Image

SIZE, SHORTER_SIDE = 224, 256
LONGEST = 16  # the most that a side is resized to, in multiples of the shorter side
ADDRESS = "https://image-net.org/download.php"


def load_imagenet(data_dir: Path | None, *, skip_unreadable: bool, progress: Progress | None) -> DataSplits:
    """Return both splits; the test images (N, 3, 224, 224) are memory-mapped from the cache.

    Raises:
        UserError: as for an image folder, except that sizes may differ. Training images are checked here only with
            `skip_unreadable`. Without it, the run stops when it needs an unreadable image, with an error that names it.
    """
    need("PIL.Image", "train", "imagenet")
    root, classes, listings = list_splits("imagenet", data_dir, skip_unreadable, progress, ADDRESS)
    train, test = listings["train"], listings["test"]
    packed = pack(root, "test", test, (3, SIZE, SIZE), f"middle {SIZE} of {SHORTER_SIDE}", middle, progress)
    streamed = StreamedSet(train.paths, torch.from_numpy(train.labels), (3, SIZE, SIZE))
    return DataSplits(streamed, packed, len(classes), classes)


def centers(data: StreamedSet) -> ImageSet:
    """Return the middle crops of all images, in memory; meant for the few held-out images of the monitor."""
    return ImageSet(torch.from_numpy(np.stack([_decoded(path, middle) for path in data.paths])), data.labels)


def middle(path: Path) -> np.ndarray:
    """Return the middle (3, 224, 224) uint8 of the image, resized to a shorter side of 256."""
    from PIL import Image

    with open_image(path) as image:
        image.draft("RGB", (SHORTER_SIDE, SHORTER_SIDE))  # decodes a JPEG near the needed size, which is faster
        image = _without_far_ends(image)
        width, height = image.size
        scale = SHORTER_SIDE / min(width, height)
        resized = converted(image, "RGB").resize(
            (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
        return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE))).transpose(2, 0, 1)


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Return the middle of an image that is longer than 16 times its shorter side, since the rest is not needed.

    If it were resized whole, an image of 1x60000 pixels would take gigabytes.
    """
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def random_crop(path: Path, draw: np.random.Generator) -> np.ndarray:
    """Return a random crop, resized to (3, 224, 224) uint8 and flipped half of the time."""
    from PIL import Image

    with open_image(path) as image:
        width, height = image.size
        for _ in range(10):
            area = width * height * draw.uniform(0.08, 1.0)
            aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
            across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < across <= width and 0 < down <= height:
                break
        else:
            across = down = min(width, height)
        left, top = draw.integers(0, width - across + 1), draw.integers(0, height - down + 1)
        box = (int(left), int(top), int(left) + across, int(top) + down)
        crop = converted(image, "RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(crop).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if draw.random() < 0.5 else pixels)


class Decoder(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The decoder that runs in the worker processes; an item depends only on (seed, epoch, index)."""

    def __init__(self, data: StreamedSet, seed: int, augment: bool) -> None:
        self._paths, self._labels = data.paths, data.labels
        self._seed, self._augment = seed, augment

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, epoch = item
        if self._augment:
            draw = np.random.default_rng((self._seed, epoch, index))
            pixels = _decoded(self._paths[index], lambda path: random_crop(path, draw))
        else:
            pixels = _decoded(self._paths[index], middle)
        return torch.from_numpy(pixels), self._labels[index]


def _decoded(path: Path, pixels: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Return `pixels(path)`; raise UserError with the path if the image is unreadable."""
    bad: dict[Path, str] = {}
    with noting_unreadable(bad, path):
        return pixels(path)
    raise unreadable_error(bad)
