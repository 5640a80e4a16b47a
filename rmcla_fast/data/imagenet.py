"""ImageNet's train and val folders: training images decoded as they are needed, validation images packed once.

Training crops are random-resized (Szegedy et al., CVPR 2015: 8 to 100 % of the area, aspect 3/4 to 4/3) to 224x224 and
flipped half of the time. What is watched and tested is the middle 224x224 of the image at a shorter side of 256.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmcla_fast.data.cache import Progress, name_unreadable, pack
from rmcla_fast.data.folder import (
    check_bits,
    class_names,
    list_images,
    readable_only,
    require_every_class,
    split_folders,
)
from rmcla_fast.data.splits import DataSplits, ImageSet, StreamedSet
from rmcla_fast.errors import UserError, need

SIZE, SHORTER_SIDE = 224, 256
ADDRESS = "https://image-net.org/download.php"


def load_imagenet(data_dir: Path | None, *, skip_unreadable: bool, progress: Progress | None) -> DataSplits:
    """Both splits; the test images (N, 3, 224, 224) are memory-mapped.

    Raises:
        UserError: as for an image folder, except that sizes may differ. Training images are opened beforehand only with
            `skip_unreadable`; else one that cannot be decoded stops the run, named, when its turn comes.
    """
    need("PIL.Image", "train", "imagenet")
    root, folders = split_folders("imagenet", data_dir, ADDRESS)
    classes = class_names(folders["train"])
    listings = {split: list_images(folder, classes) for split, folder in folders.items()}
    if skip_unreadable:
        listings = {split: readable_only(listing, progress) for split, listing in listings.items()}
    for split, folder in folders.items():
        require_every_class(folder, listings[split], classes)
    train, test = listings["train"], listings["test"]
    packed = pack(root, "test", test, (3, SIZE, SIZE), f"middle {SIZE} of {SHORTER_SIDE}", middle, progress)
    streamed = StreamedSet(train.paths, torch.from_numpy(train.labels), (3, SIZE, SIZE))
    return DataSplits(streamed, packed, len(classes), classes)


def centers(data: StreamedSet) -> ImageSet:
    """The middle crops of all the images, in memory: for the few that are watched."""
    return ImageSet(torch.from_numpy(np.stack([_decoded(path, middle) for path in data.paths])), data.labels)


def middle(path: Path) -> np.ndarray:
    """(3, 224, 224) uint8: the middle of the image resized to a shorter side of 256."""
    from PIL import Image

    with Image.open(path) as image:
        check_bits(path, image.mode)
        image.draft("RGB", (SHORTER_SIDE, SHORTER_SIDE))  # a JPEG is decoded near the size that is needed
        width, height = image.size
        scale = SHORTER_SIDE / min(width, height)
        resized = image.convert("RGB").resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
        return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE))).transpose(2, 0, 1)


def random_crop(path: Path, draw: np.random.Generator) -> np.ndarray:
    """(3, 224, 224) uint8: a random-resized crop, flipped half of the time."""
    from PIL import Image

    with Image.open(path) as image:
        check_bits(path, image.mode)
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
        crop = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(crop).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if draw.random() < 0.5 else pixels)


class Decoder(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """What a worker process runs: item (index, epoch) is a function of (seed, epoch, index) alone."""

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
    try:
        return pixels(path)
    except UserError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a corrupt file
        raise UserError(name_unreadable([path])) from error
