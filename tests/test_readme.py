"""The README's code runs, and the accuracies in docs/results.md are those of the raw files."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from documentation import python_blocks
from run_cases import ROOT

from rmcla_fast import models, random_start

_, FUSED, PLAIN = python_blocks("README.md")
RESULTS = (ROOT / "docs/results.md").read_text()


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
