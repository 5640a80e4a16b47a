"""What is tried before a run begins: whether its model can be evaluated on an image and trained on a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.cuda_graph import first_line
from rmcla_fast.data.splits import DataSplits, ImageSet, StreamedSet
from rmcla_fast.errors import UserError, short_of_memory
from rmcla_fast.training.step import TrainStep
from rmcla_fast.training.torch_settings import not_deterministic


@torch.no_grad()
def initialise(model: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """Run a model with lazy modules on one image of a shape (C, H, W), so that they make their weights."""
    image = torch.zeros(1, *shape, dtype=torch.float32)
    with _as_user_error(name, f"take images of shape {tuple(image.shape)}"):
        model.eval()(image)
    model.train()


def check_evaluation(model: nn.Module, name: str, splits: DataSplits, device: torch.device) -> None:
    """Raise UserError if the model cannot be evaluated on an image, or has another number of classes than the data."""
    image = torch.zeros(1, *splits.train.shape, dtype=torch.float32, device=device)
    with _as_user_error(name, f"take images of shape {tuple(image.shape)}"), checked(model) as asked, torch.no_grad():
        logits = asked(image)
    wanted = (1, splits.num_classes)
    if logits.shape != wanted:
        raise UserError(f"model {name} must return logits of shape {wanted} for one image; got {tuple(logits.shape)}")


def check_training(step: TrainStep, name: str, train: ImageSet | StreamedSet, batch_size: int, ranks: int) -> None:
    """Raise UserError if the model cannot be trained on the smallest batch that an epoch has for a rank.

    Batch norm, for one, cannot normalise a single value per channel.
    """
    last = len(train) % batch_size
    count = (last if last >= 2 * ranks else batch_size) // ranks
    images = f"a batch of {count} images" if count > 1 else "a single image"
    with _as_user_error(name, f"be trained on {images} of shape {train.shape}"):
        step.rehearse(*_first(train, count, step.rng.device))


def _first(train: ImageSet | StreamedSet, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first images and labels of a training set; black images in place of those that stay on disk."""
    if isinstance(train, ImageSet):
        first = train.take(torch.arange(count))
        return first.images.to(device), first.labels.to(device)
    images = torch.zeros(count, *train.shape, dtype=torch.uint8, device=device)
    return images, train.labels[:count].to(device)


@contextmanager
def _as_user_error(name: str, task: str) -> Iterator[None]:
    """Turn an error of the model into a UserError that says what the model called `name` cannot do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the model's own code may raise anything
        if short_of_memory(error) or not_deterministic(error):
            raise
        raise UserError(f"model {name} cannot {task}: {first_line(error)}") from error
