"""Loaders of training batches: from uint8 images in memory, on the device if they fit, or from image files on disk.

The order of the images depends only on (seed, epoch).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rmcla_fast.data import ImageSet, StreamedSet
from rmcla_fast.data.imagenet import Decoder
from rmcla_fast.errors import RunFailed, UserError
from rmcla_fast.ops import augment
from rmcla_fast.training.distributed import World
from rmcla_fast.training.failures import not_started
from rmcla_fast.training.held_images import HeldImages, MixedImages


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the images' order in an epoch, (count,) int64. It is a function of (seed, epoch), so it is never saved."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


def mixed_order(counts: tuple[int, int], sizes: tuple[int, int], steps: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch of mixed batches, (steps * sum(sizes),) int64; a function of (seed, epoch), too.

    Each batch has the next images of `epoch_order`, which begins anew at its end, and extra images that are drawn from
    all of them, with replacement. They are shuffled, since ranks and pieces of a batch each get a part of it.

    Args:
        counts: the images of the training set, which are the first rows, and the extra images, which follow them.
        sizes: how many of each are in a batch.
        steps: the batches of an epoch.
    """
    own = np.resize(epoch_order(counts[0], seed, epoch).numpy(), (steps, sizes[0]))
    draw = np.random.default_rng((seed, epoch, 0, 1))  # another stream than those of the order and of CutMix
    drawn = draw.integers(counts[0], sum(counts), (steps, sizes[1]))
    return torch.from_numpy(draw.permuted(np.hstack((own, drawn)), axis=1).reshape(-1))


def steps_in_epoch(count: int, batch_size: int, ranks: int = 1) -> int:
    """Return the number of updates in an epoch.

    A last, smaller batch counts unless it has a single image for each rank, which batch norm cannot normalise.

    Raises:
        UserError: fewer images than a batch, or a batch that the ranks cannot share equally.
    """
    if count < batch_size:
        raise UserError(
            f"{count} training images are left beside those held out, fewer than a batch of {batch_size}; "
            f"give --batch-size {count} or less"
        )
    if batch_size % ranks:
        raise UserError(f"--batch-size {batch_size} cannot be shared by {ranks} processes; give a multiple of {ranks}")
    return count // batch_size + (count % batch_size >= 2 * ranks)


class Batches(Protocol):
    """A source of batches: `epoch` yields images (B, C, H, W) and labels for each of its `steps` updates."""

    steps: int

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class ExtraShare:
    """Extra training images, and how many of them each batch has."""

    data: ImageSet
    count: int


class Loader:
    """The batches of one training set: images (B, C, H, W) uint8 and labels (B,) int64 on the device.

    Args:
        data: the training set.
        batch_size: images in an update.
        seed: the seed of the order.
        device: the device of the batches.
        rng: int64 (seed, step) on the device, from which crops and flips are drawn. It belongs to the update, which
            advances it, so a batch must not be drawn before the previous update is made.
        augment: whether images are cropped with a padding of 4.
        flip: whether half of the augmented images are mirrored left to right, too.
        world: the processes that share each batch equally. Up to `world.size` - 1 images of a last batch are left out.
        extra: images besides the training set. Every batch, also the last, then has `batch_size` images, of which
            `extra.count` are extra ones. The number of updates in an epoch stays the same.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        device: torch.device,
        rng: Tensor,
        augment: bool,
        flip: bool,
        world: World,
        extra: ExtraShare | None = None,
    ) -> None:
        self.steps = steps_in_epoch(len(data), batch_size, world.size)
        self._batch_size, self._seed, self._device, self._rng, self._world = batch_size, seed, device, rng, world
        self._augment, self._flip = augment, flip
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # that of the network
        self._count, self._extra = len(data), extra
        self._held = HeldImages(data, device) if extra is None else MixedImages(data, extra.data, device)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the updates `first`, `first` + 1, ... of an epoch."""
        order = self._order(epoch)
        orders = (order, order.to(self._device))
        for step in range(first, self.steps):
            yield self._batch(*(_share(rows, step, self._batch_size, self._world) for rows in orders))

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of an epoch's batches; those from the size of the training set on are extra images."""
        if self._extra is None:
            return epoch_order(self._count, self._seed, epoch)
        counts, sizes = (self._count, len(self._extra.data)), (self._batch_size - self._extra.count, self._extra.count)
        return mixed_order(counts, sizes, self.steps, self._seed, epoch)

    def _batch(self, index: Tensor, on_device: Tensor) -> tuple[Tensor, Tensor]:
        images, rows, labels = self._held.batch(index, on_device)
        if not self._augment:
            return images[rows], labels
        return augment(images, rows, rng=self._rng, flip=self._flip, memory_format=self._layout), labels


class StreamedLoader:
    """The batches of a training set that stays on disk: worker processes decode, crop and flip ahead of the updates.

    An unreadable image stops the run with a RunFailed that names it.

    Args:
        data: the files of the training set.
        batch_size: images in an update.
        seed: the seed of the order, the crops and the flips.
        device: the device of the batches.
        augment: whether images are cropped at random and flipped; if not, their middle is taken.
        workers: the number of processes that decode; with 0, this process decodes.
        world: the processes that share each batch equally.
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
        self._count, self._batch_size, self._seed = len(data), batch_size, seed
        self._device, self._world, self._workers = device, world, workers
        self._decoder = Decoder(data, seed, augment)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the updates `first`, `first` + 1, ... of an epoch."""
        order = epoch_order(self._count, self._seed, epoch)
        shares = [_share(order, step, self._batch_size, self._world) for step in range(first, self.steps)]
        loader = torch.utils.data.DataLoader(
            self._decoder,
            batch_sampler=[[(row, epoch) for row in share.tolist()] for share in shares],
            num_workers=self._workers,
            # The loader has its own generator, so that the model's draws do not depend on where a run was resumed.
            generator=torch.Generator(),
            pin_memory=self._device.type == "cuda",
            prefetch_factor=4 if self._workers else None,
            worker_init_fn=_leave_process_group,
        )
        try:
            batches = iter(loader)
        except OSError as error:
            raise not_started(error, self._workers) from error
        try:
            for images, labels in batches:
                yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
        except UserError as error:  # a worker's error carries its traceback in the text
            raise RunFailed(str(error).rpartition("UserError: ")[2].strip()) from None


def _leave_process_group(worker: int) -> None:
    """Keep a signal to the whole group, such as Ctrl-C or a closed terminal, from the workers.

    The run needs them for the update that it finishes, and ends them itself. They also end if the run is lost.
    """
    os.setpgid(0, 0)


def _share(order: Tensor, step: int, batch_size: int, world: World) -> Tensor:
    """Return this rank's part of a batch. The parts of all ranks have the same size."""
    end = min((step + 1) * batch_size, len(order))
    end -= (end - step * batch_size) % world.size
    return order[step * batch_size + world.rank : end : world.size]
