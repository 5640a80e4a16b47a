"""The README's code runs, and the accuracies in docs/results.md are those of the raw files."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch

from rmcla_fast import models, random_start

ROOT = Path(__file__).parents[1]
LOOP, FUSED, PLAIN, _ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
RESULTS = (ROOT / "docs/results.md").read_text()


def test_the_loop_trains_the_model_and_advances_rng() -> None:
    torch.manual_seed(0)
    model = models.create("small-cnn", 10, 1)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    batch = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: dict[str, Any] = {"model": model, "loader": [batch] * 3, "optimizer": optimizer, "device": "cpu"}
    exec(LOOP, names)
    assert names["rng"].tolist() == [0, 3]
    assert names["loss"].isfinite()
    assert all(not torch.equal(before, now) for before, now in zip(weights, model.parameters(), strict=True))


def test_the_operators_and_the_plain_pytorch_beside_them_agree() -> None:
    drawn = "torch.empty_like(x).uniform_(-eps, eps)"
    assert drawn in PLAIN
    torch.manual_seed(0)
    images, labels, rng = torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,)), torch.tensor([7, 3])
    noise = random_start(torch.zeros_like(images), 8 / 255, rng=rng)
    names: dict[str, Any] = {"NOISE": noise}
    exec(FUSED, names)
    exec(PLAIN.replace(drawn, "NOISE"), names)
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


def test_the_accuracies_over_seeds_are_those_of_the_raw_file() -> None:
    made = (ROOT / "benchmarks/results/digits-seeds.md").read_text()
    (table,) = re.findall(r"(?:^\|.*\n)+", made, re.MULTILINE)
    assert table in RESULTS
