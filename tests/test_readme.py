"""The README's code runs, and its two columns are the same method."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch

from rmcla_fast import models, random_start

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_operators_and_the_plain_pytorch_beside_them_agree() -> None:
    fused, plain = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:2]
    drawn = "torch.empty_like(x).uniform_(-eps, eps)"
    assert drawn in plain
    torch.manual_seed(0)
    images, labels, rng = torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,)), torch.tensor([7, 3])
    noise = random_start(torch.zeros_like(images), 8 / 255, rng=rng)
    names: dict[str, Any] = {"NOISE": noise}
    exec(fused, names)
    exec(plain.replace(drawn, "NOISE"), names)
    ours = models.create("preact-resnet18", 10, 1)
    theirs = copy.deepcopy(ours)
    losses, gradients = [], []
    for model, loss in (
        (ours, names["loss_of"](ours, images, labels, rng)),
        (theirs, names["plain_loss_of"](theirs, images, labels)),
    ):
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[1].abs().max()))
