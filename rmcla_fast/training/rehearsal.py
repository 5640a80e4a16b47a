"""What is tried before a run begins: whether its model can be evaluated, and can make an update.

A copy of the model is tried. So a model that sets its own weights or attributes by the first batch that it sees still
meets the first batch of the training first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rmcla_fast.attacks.checked_model import ROWS, checked
from rmcla_fast.cuda_graph import first_line
from rmcla_fast.data.splits import ImageSet, StreamedSet
from rmcla_fast.errors import UserError, short_of_memory
from rmcla_fast.ops.tensors import to_unit
from rmcla_fast.training.step import TrainStep
from rmcla_fast.training.torch_settings import not_deterministic


@torch.no_grad()
def initialise(model: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """Run a model with lazy modules on one image of a shape (C, H, W), so that they make their weights."""
    image = torch.zeros(1, *shape, dtype=torch.float32)
    with _as_user_error(name, f"take images of shape {tuple(image.shape)}"):
        model.eval()(image)
    model.train()


def rehearse(
    model: nn.Module,
    name: str,
    train: ImageSet | StreamedSet,
    num_classes: int,
    batch_size: int,
    ranks: int,
    step_for: Callable[[nn.Module], TrainStep],
) -> None:
    """Evaluate a copy of the model on a few images, and train it on the smallest batch that an epoch has for a rank.

    Batch norm, for one, cannot normalise a single value per channel. A model that cannot be copied is only evaluated.

    Args:
        model: the model, which stays as it is.
        name: its name, for the message.
        train: the training images.
        num_classes: the number of classes of the data.
        batch_size: images in an update, those of all ranks together.
        ranks: the number of processes that share a batch.
        step_for: makes the update of a model, as the run will make it but uncaptured.

    Raises:
        UserError: one sentence: what the model cannot do, and why.
    """
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    images, _ = _first(train, min(ROWS, len(train)), device)
    tried = _copied(model)
    shown = f"images of shape {tuple(images.shape)}"
    with _as_user_error(name, f"take {shown}"), checked(tried or model) as asked, torch.no_grad():
        classes = asked(to_unit(images)).shape[1]
    if classes != num_classes:
        raise UserError(
            f"model {name} must return {num_classes} logits for an image, one for each class; got {classes}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model {name} has nothing to train, since none of its weights requires a gradient")
    if tried is None:
        return
    last = len(train) % batch_size
    count = (last if last >= 2 * ranks else batch_size) // ranks
    batch = f"a batch of {count} images" if count > 1 else "a single image"
    before = tried.state_dict().keys()
    with _as_user_error(name, f"be trained on {batch} of shape {train.shape}"):
        step_for(tried)(*_first(train, count, device))
    if new := [key for key in tried.state_dict() if key not in before]:
        raise UserError(
            f"model {name} makes new tensors in its first update ({', '.join(new[:3])}), which a checkpoint could not "
            "put back; let its constructor register them"
        )
    idle = [key for key, one in tried.named_parameters() if one.requires_grad and one.grad is None]
    if ranks > 1 and idle:
        raise UserError(
            f"model {name} has weights that get no gradient ({', '.join(idle[:3])}), and several processes need one "
            "for each; call requires_grad_(False) on them in its constructor"
        )


def _copied(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model; None if it cannot be copied, or if a copy could not be trained."""
    try:
        copied = copy.deepcopy(model)
    except Exception:  # the model's own code decides how it is copied
        return None
    # The copied weights of a scripted module are no leaves of the autograd graph.
    return copied if all(parameter.is_leaf for parameter in copied.parameters()) else None


def _first(train: ImageSet | StreamedSet, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first images and labels of a training set; grey images in place of those that stay on disk."""
    if isinstance(train, ImageSet):
        first = train.take(torch.arange(count))
        return first.images.to(device), first.labels.to(device)
    images = torch.full((count, *train.shape), 128, dtype=torch.uint8, device=device)
    return images, train.labels[:count].to(device)


@contextmanager
def _as_user_error(name: str, task: str) -> Iterator[None]:
    """Turn an error of the model into a UserError that says what the model called `name` cannot do."""
    try:
        yield
    except (UserError, OSError):  # an OSError is of a file, such as torch's cache, and names it
        raise
    except Exception as error:  # the model's own code may raise anything
        if short_of_memory(error) or not_deterministic(error):
            raise
        raise UserError(f"model {name} cannot {task}: {first_line(error)}") from error
