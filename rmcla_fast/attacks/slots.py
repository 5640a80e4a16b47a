"""Search over a queue of images in a batch of constant size: when an image is decided, the next one takes its place.

An attack that drops fooled images would otherwise run on ever smaller batches, and one image that withstands a
thousand steps would hold up a whole batch. Here the batch stays full until the queue is empty, and on a GPU one CUDA
graph serves for all of it. `APGD`, `FAB` and `Square` are such searches. What they find out about an image depends on
that image alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rmcla_fast.attacks.batches import Examples, seeds_of
from rmcla_fast.attacks.checked_model import ROWS, CheckedModel
from rmcla_fast.attacks.pgd_step import capture_for, keep_freed_memory
from rmcla_fast.cuda_graph import CaptureFailed

EMPTY = -1  # in place of the row of an image
PIXELS = (-3, -2, -1)  # the dimensions of one image


class Decided(NamedTuple):
    """What a search found out about some images."""

    rows: Tensor  # (k,) int64 on the CPU: their places in the data set
    right: Tensor  # (k,) bool on the CPU: they withstood the search
    images: Tensor  # (k, C, H, W) on the device: adversarial images, where `right` is false
    no_gradient: Tensor  # (k,) bool on the CPU: the gradient was exactly zero at the beginning of a run


@dataclass
class Slots:
    """The tensors of a search. Each has one entry for every slot, and the search writes into it in place."""

    origin: Tensor  # (B, C, H, W), the images of the data set
    images: Tensor  # (B, C, H, W), the points that the search has reached
    labels: Tensor  # (B,) int64
    taken: Tensor  # (B,) int64: how many steps the current run has taken
    fooled: Tensor  # (B,) bool: the model misclassifies `images`
    idle: Tensor  # (B,) bool: there is no image in the slot
    no_gradient: Tensor  # (B,) bool

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Search(ABC):
    """A search that decides about images one by one. A subclass says how a run begins and what a step is."""

    steps: int  # of one run
    look_every = 4  # steps between two looks at the slots of a GPU; an image that is decided waits for the next look
    slots: Slots
    fewest = 0  # steps that any image in a slot had taken of its run, when the slots were last looked at
    uncapturable = False

    def __init__(self, model: CheckedModel, examples: Examples, seed: int) -> None:
        self.model, self.examples, self.seed = model, examples, seed

    @abstractmethod
    def new_slots(self, images: Tensor, labels: Tensor) -> Slots:
        """Return slots with the shapes, dtypes and layouts of these images and labels, and with any content."""

    @staticmethod
    def empty(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what every search keeps, for slots without an image."""
        off = torch.zeros_like(labels, dtype=torch.bool)
        return {
            "origin": images,
            "images": images.clone(),
            "labels": labels,
            "taken": torch.zeros_like(labels),
            "fooled": off,
            "idle": ~off,
            "no_gradient": off.clone(),
        }

    def prepare(self, rows: Tensor, size: int) -> int:
        """Get ready for these rows, in batches of up to `size`; return the number of runs that each image takes."""
        return 1

    @abstractmethod
    def begin(self, where: Tensor, rows: Tensor, run: Tensor) -> None:
        """Begin run number `run` (k,) on the images in the slots `where` (k,), whose places in the data set are `rows`.

        The three are on the CPU. The image and its label are in the slot, and `taken` and `fooled` are reset already.
        """

    @abstractmethod
    def step(self) -> None:
        """Ask the model about the image in every slot and move on, in place and without waiting for a GPU."""

    @property
    def active(self) -> Tensor:
        """Return the slots (B,) bool that hold an image which has not fooled the model and whose run is not over."""
        return ~(self.slots.fooled | self.slots.idle) & (self.slots.taken < self.steps)

    def generators(self, rows: Tensor, step: Tensor) -> Tensor:
        """Return the random states (k, 2) of these rows on the device; `step` is () or (k,), one for each."""
        return torch.stack([seeds_of(rows, self.seed), step.expand_as(rows)], 1).to(self.slots.labels.device)

    def run(self, rows: Tensor, size: int, report: Callable[[float], None]) -> Iterator[Decided]:
        """Search for all `rows` (N,) in up to `size` slots, and yield the rows in the order in which they are decided.

        `report` is called with the fraction of the work that is done, if every image took all of its steps.
        """
        if not len(rows):
            return
        waiting, runs, decided = rows, self.prepare(rows, size), 0
        self._open(rows[:1], _rounded_up(min(size, len(rows))))
        while decided < len(rows):
            self._shrink(len(waiting))
            waiting = self._fill(waiting)
            self._advance()
            found = self._collect(runs)
            if found is not None:
                decided += len(found.rows)
                yield found
            begun = (self._number * self.steps + self._taken)[self._held != EMPTY].sum().item() / (runs * self.steps)
            report((decided + begun) / len(rows))

    def _open(self, row: Tensor, size: int) -> None:
        """Make `size` empty slots for images like that of `row` (1,)."""
        _, images, labels = self.examples.take(row)
        if images.device.type == "cpu":
            keep_freed_memory()
        index = torch.zeros(size, dtype=torch.int64, device=labels.device)
        self.slots = self.new_slots(_select(images, index), labels[index])
        self._held = torch.full((size,), EMPTY)  # the row in each slot
        self._number = torch.zeros(size, dtype=torch.int64)  # of the run in each slot
        self._taken = torch.zeros(size, dtype=torch.int64)  # steps of this run, as they were last read
        self._capture()

    def _capture(self) -> None:
        """Capture the step in a CUDA graph, if the slots are on a GPU and the model allows it."""
        self._replay: Callable[[], None] | None = None
        capture = capture_for(self.slots.labels.device)
        if capture is None or self.uncapturable:
            return
        before = {name: tensor.clone() for name, tensor in self.slots.tensors.items()}
        try:
            self._replay = capture(self.step)
        except CaptureFailed as error:
            self.uncapturable = True
            warnings.warn(
                f"the attack runs without a CUDA graph, since the model cannot be captured in one: {error}",
                stacklevel=2,
            )
        for name, tensor in self.slots.tensors.items():  # the warm-up before the capture has taken steps
            tensor.copy_(before[name])

    def _shrink(self, waiting: int) -> None:
        """Leave out empty slots that nobody waits for. On a GPU that costs a capture, so half of them must be empty."""
        live = (self._held != EMPTY).nonzero().flatten()
        size, wanted = len(self._held), _rounded_up(len(live) + waiting)
        if wanted >= size or (self._replay is not None and wanted > size // 2):
            return
        kept = torch.cat([live, live.new_zeros(wanted - len(live))])
        index = kept.to(self.slots.labels.device)
        chosen = {name: _select(tensor, index) for name, tensor in self.slots.tensors.items()}
        self.slots = dataclasses.replace(self.slots, **chosen)
        self.slots.idle[len(live) :] = True
        self._held, self._number, self._taken = self._held[kept], self._number[kept], self._taken[kept]
        self._held[len(live) :] = EMPTY
        self._capture()

    def _fill(self, waiting: Tensor) -> Tensor:
        """Put the next images into the empty slots, and return the rows that still wait."""
        where = (self._held == EMPTY).nonzero().flatten()[: len(waiting)]
        if not len(where):
            return waiting
        rows, slots = waiting[: len(where)], self.slots
        _, images, labels = self.examples.take(rows)
        self._held[where], self._number[where] = rows, 0
        index = where.to(labels.device)
        slots.origin[index], slots.labels[index] = images, labels
        slots.idle[index], slots.no_gradient[index] = False, False
        self._begin(where)
        return waiting[len(where) :]

    def _begin(self, where: Tensor) -> None:
        index = where.to(self.slots.labels.device)
        self.slots.taken[index], self.slots.fooled[index] = 0, False
        self._taken[where] = 0
        self.begin(where, self._held[where], self._number[where])

    def _advance(self) -> None:
        taken = self._taken[self._held != EMPTY]
        self.fewest, left = int(taken.min()), self.steps - int(taken.max())
        # On a CPU a look costs much less, since it waits for nothing.
        every = self.look_every if self.slots.labels.is_cuda else max(1, self.look_every // 4)
        for _ in range(min(every, left)):
            (self._replay or self.step)()

    def _collect(self, runs: int) -> Decided | None:
        """Begin the next run where one is over, and empty and return the slots whose images are decided."""
        slots, held = self.slots, self._held != EMPTY
        fooled, self._taken = torch.stack([slots.fooled.long(), slots.taken]).cpu()  # waits for the GPU once
        fooled_now = fooled.bool() & held
        over = (self._taken >= self.steps) & held & ~fooled_now
        again = over & (self._number + 1 < runs)
        if again.any():
            self._number += again
            self._begin(again.nonzero().flatten())
        done = (fooled_now | (over & ~again)).nonzero().flatten()
        if not len(done):
            return None
        index = done.to(slots.labels.device)
        found = Decided(self._held[done], ~fooled_now[done], slots.images[index], slots.no_gradient[index].cpu())
        self._held[done], slots.idle[index] = EMPTY, True
        return found


def copy_where(where: Tensor, source: Tensor, into: Tensor) -> None:
    """Copy the entries of `source` that `where` (B,) marks, without waiting for a GPU. Images must be finite."""
    if into.dim() == 1:
        torch.where(where, source, into, out=into)
    elif some(where):  # `lerp_` is exact for the weights 0 and 1, and on a CPU faster than `torch.where`
        into.lerp_(source, where.to(into.dtype).reshape(-1, *[1] * (into.dim() - 1)))


def some(where: Tensor) -> bool:
    """Return False if no entry of `where` (B,) is set; on a GPU always True, so as not to wait for it."""
    return where.is_cuda or bool(where.any())


def _rounded_up(count: int) -> int:
    return -(-count // ROWS) * ROWS


def _select(tensor: Tensor, index: Tensor) -> Tensor:
    """Return a copy of these entries in the memory layout of the tensor."""
    chosen = tensor.index_select(0, index)
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return chosen.contiguous(memory_format=torch.channels_last)
    return chosen
