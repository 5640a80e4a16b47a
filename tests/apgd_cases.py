"""What the tests of APGD and of the batch that it runs on share."""

from __future__ import annotations

from typing import Any

import torch
from evaluation_cases import examples
from torch import Tensor, nn

from rmcla_fast.attacks.apgd import APGD
from rmcla_fast.attacks.batches import Examples
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.slots import Decided

EPSILON = 0.02


def right_examples(model: nn.Module, count: int = 64) -> tuple[Tensor, Tensor]:
    images, _ = examples(count)
    return images, model(images.to(next(model.parameters()).dtype)).argmax(1)


def decided(
    model: nn.Module, images: Tensor, labels: Tensor, *, size: int = 64, rows: Tensor | None = None, **options: object
) -> dict[int, tuple[bool, Tensor]]:
    """Return what a search decides about each row: whether it withstood, and its image."""
    found: dict[int, tuple[bool, Tensor]] = {}
    with checked(model) as asked:
        arguments: dict[str, Any] = {"epsilon": EPSILON} | options
        search = APGD(asked, Examples(asked, images, labels), 7, **arguments)
        parts: list[Decided] = list(
            search.run(torch.arange(len(labels)) if rows is None else rows, size, lambda fraction: None)
        )
    for part in parts:
        for row, right, image in zip(part.rows.tolist(), part.right.tolist(), part.images, strict=True):
            assert row not in found
            found[row] = (right, image)
    return found
