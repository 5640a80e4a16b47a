"""What the tests of the training step share: a small network, batches of noise, a mode that forbids host reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmcla_fast import Recipe, models, recipes
from rmcla_fast.training import TrainStep

EPSILON = 0.1


def batch(size: int = 16, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, classes, (size,), generator=generator)


def network(classes: int = 10) -> nn.Module:
    """Return a network of convolutions with batch norm and a linear classifier."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [models.Normalize(1)]
    for inputs, outputs in ((1, 16), (16, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, classes))


def sgd(model: nn.Module, lr: float = 0.05, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4, **options)


def recipe(name: str) -> Recipe:
    return recipes.get(name) if name == "standard" else recipes.get(name).replace(epsilon=EPSILON)


def train(step: TrainStep, updates: int, size: int = 16) -> list[float]:
    return [float(step(*batch(size, seed=n))) for n in range(updates)]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class RefuseHostReads(TorchDispatchMode):
    """A mode that raises an error where the host would wait for a GPU.

    These are reads of scalars, shapes that depend on values, and tensors made from Python numbers.
    """

    REFUSED = (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "equal",
        "_unique2",
        "unique_dim",
        "lift_fresh",  # a tensor made from Python numbers, such as an index by a list: its copy to a GPU waits
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in self.REFUSED or by_mask:
            raise AssertionError(f"{func} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def process_group(folder: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
