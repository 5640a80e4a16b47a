"""Loader of a data set that is held as uint8, on the device where it fits; their order depends on (seed, epoch)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rmcla_fast.data import ImageSet, StreamedSet
from rmcla_fast.data.imagenet import Decoder
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.ops import augment_start
from rmcla_fast.training.distributed import World

SHARE_OF_MEMORY = 0.4  # of a GPU's free memory that the images may take; more stays in the host's


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) int64: the images' order in an epoch, a function of (seed, epoch): nothing need be saved of it."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


def steps_in_epoch(count: int, batch_size: int, ranks: int = 1) -> int:
    """Updates in an epoch. A last, smaller batch counts, unless it is a single image (for each of the ranks): batch
    norm has no use for it.

    Raises:
        UserError: fewer images than a batch, or a batch that the ranks cannot share equally.
    """
    if count < batch_size:
        raise UserError(
            f"the data set has {count} training images, fewer than a batch; give --batch-size {count} or less"
        )
    if batch_size % ranks:
        raise UserError(f"--batch-size {batch_size} cannot be shared by {ranks} processes; give a multiple of {ranks}")
    return count // batch_size + (count % batch_size >= 2 * ranks)


class Batch(NamedTuple):
    """What an update takes."""

    images: Tensor  # (B, C, H, W) uint8, or float32 in [0, 1] where augmented
    labels: Tensor  # (B,) int64
    start: Tensor | None  # (B, C, H, W) float32: the attack's random start, where it was drawn with the crop


class Loader:
    """Loader of one training set.

    Args:
        data: the training set.
        batch_size: images an update.
        seed: of the order, the crops, the flips and the start.
        device: where the batches are wanted.
        augment: crop with padding 4.
        flip: also flip half of the images; a mirrored digit is another sign.
        draw_start: give the uniform random start too, with the crop, in the same pass over the pixels.
        world: the processes that share each batch equally; up to `world.size` - 1 images of a last batch are left out.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        device: torch.device,
        augment: bool,
        flip: bool,
        draw_start: bool,
        world: World | None = None,
    ) -> None:
        self._world = world or World()
        self.steps = steps_in_epoch(len(data), batch_size, self._world.size)
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._augment, self._flip, self._draw_start = augment, flip, draw_start
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # the network's
        self._labels = data.labels.to(device)
        self._images = data.images.to(device) if _fits(data.images, device) else data.images
        self._rng = torch.tensor([self._world.seed(seed), 0], device=device)
        self.start_radius = torch.zeros((), device=device)  # float32, read when a batch is drawn

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of the updates `first`, ... of an epoch; update n draws from (seed, n), as `TrainStep` does."""
        order = epoch_order(len(self._labels), self._seed, epoch)
        orders = (order, order.to(self._device))
        for step in range(first, self.steps):
            index, on_device = (_share(rows, step, self._batch_size, self._world) for rows in orders)
            yield self._batch(index, on_device, epoch * self.steps + step)

    def _batch(self, index: Tensor, on_device: Tensor, step: int) -> Batch:
        labels = self._labels[on_device]
        held = self._images.device == self._device
        if not held:
            gathered = self._images[index].pin_memory().to(self._device, non_blocking=True)
        if not self._augment:
            return Batch(self._images[on_device] if held else gathered, labels, None)
        self._rng[1].fill_(step)
        source, rows = (self._images, on_device) if held else (gathered, torch.arange(len(index), device=self._device))
        images, start = augment_start(
            source, rows, rng=self._rng, epsilon=self.start_radius, flip=self._flip, memory_format=self._layout
        )
        return Batch(images, labels, start if self._draw_start else None)


class StreamedLoader:
    """The same of a data set that stays on disk: worker processes decode, crop and flip ahead of the updates.

    An unreadable image stops the run with a UserError that names it. `workers` 0 decodes in this process.
    """

    def __init__(
        self,
        data: StreamedSet,
        batch_size: int,
        seed: int,
        device: torch.device,
        augment: bool,
        workers: int,
        world: World,
    ) -> None:
        self.steps = steps_in_epoch(len(data), batch_size, world.size)
        self.start_radius = torch.zeros((), device=device)  # the update draws the start itself
        self._count, self._batch_size, self._seed, self._device, self._world = (
            len(data),
            batch_size,
            seed,
            device,
            world,
        )
        self._decoder = Decoder(data, seed, augment)
        self._workers = workers

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of the updates `first`, ... of an epoch."""
        order = epoch_order(self._count, self._seed, epoch)
        shares = [_share(order, step, self._batch_size, self._world) for step in range(first, self.steps)]
        loader = torch.utils.data.DataLoader(
            self._decoder,
            batch_sampler=[[(row, epoch) for row in share.tolist()] for share in shares],
            num_workers=self._workers,
            generator=torch.Generator(),  # not the model's, whose draws must not depend on where a run was resumed
            pin_memory=self._device.type == "cuda",
            prefetch_factor=4 if self._workers else None,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        try:
            for images, labels in loader:
                yield Batch(
                    images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True), None
                )
        except UserError as error:  # a worker's comes with its traceback in the text
            raise RunFailed(str(error).rpartition("UserError: ")[2].strip()) from None


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _share(order: Tensor, step: int, batch_size: int, world: World) -> Tensor:
    """This rank's part of a batch; every rank's is of the same size."""
    end = min((step + 1) * batch_size, len(order))
    end -= (end - step * batch_size) % world.size
    return order[step * batch_size + world.rank : end : world.size]


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() < SHARE_OF_MEMORY * free
