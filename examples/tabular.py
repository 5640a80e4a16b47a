"""Attack and train on a table instead of images: each feature has a budget of its own, and some may not move.

    python examples/tabular.py

It needs torch, rich, and scikit-learn for the data: ten features of 442 patients, and whether their diabetes progressed
more than the median in the year after. The budgets are guesses of how much a second measurement could differ. It prints
the accuracies over all patients, each attacked in the fold that held it out, and how far every feature was moved.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from rmcla_fast import perturb_step, random_start

# In the unit of each feature: years, kg/m2, mmHg, and those of six blood values.
BUDGETS = dict(age=0, sex=0, bmi=1, bp=4, s1=10, s2=10, s3=4, s4=0.4, s5=0.2, s6=5)


def attack(
    model: nn.Module, features: Tensor, labels: Tensor, epsilon: float, mask: Tensor, rng: Tensor, steps: int
) -> Tensor:
    """Return features in [0, 1] that raise the loss, each within epsilon times its mask of where it was."""
    step_size = epsilon if steps == 1 else epsilon / 4
    moved = random_start(features, epsilon, rng=rng, clip=True, mask=mask)
    for _ in range(steps):
        moved.requires_grad_()
        loss = nn.functional.cross_entropy(model(moved), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, moved)
        moved = perturb_step(moved.detach(), features, grad, step_size=step_size, epsilon=epsilon, mask=mask)
    return moved


def trained(features: Tensor, labels: Tensor, epsilon: float, mask: Tensor, epochs: int, steps: int) -> nn.Module:
    """Return a network that was trained on features attacked with `steps` steps; 0 trains on them as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    rng = torch.tensor([0, 0])  # (seed, step) of the noise
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(64):
            batch = features[index]
            if steps:
                batch = attack(model, batch, labels[index], epsilon, mask, rng, steps)
            loss = nn.functional.cross_entropy(model(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rng[1] += 1
    return model


def main(epochs: int) -> None:
    data = load_diabetes(scaled=False)
    values = torch.tensor(data.data, dtype=torch.float32)
    labels = (torch.tensor(data.target) > torch.tensor(data.target).median()).long()
    least, width = values.min(0).values, values.max(0).values - values.min(0).values
    features = (values - least) / width  # the range of each feature becomes [0, 1]
    budgets = torch.tensor([BUDGETS[name] for name in data.feature_names]) / width
    epsilon = budgets.max().item()  # of the feature that may move most
    mask = (budgets / epsilon)[None]  # (1, features): the share of epsilon that each feature has; 0 keeps it still

    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(features, labels)
    right, moves = torch.zeros(2, 2), []
    for known, held_out in folds:
        for row, steps in enumerate((0, 1)):
            model = trained(features[known], labels[known], epsilon, mask, epochs, steps)
            clean, truth = features[held_out], labels[held_out]
            moved = attack(model, clean, truth, epsilon, mask, torch.tensor([1, 0]), steps=20)
            moves.append((moved - clean).abs())
            for column, shown in enumerate((clean, moved)):
                right[row, column] += (model(shown).argmax(1) == truth).sum()
    largest = torch.cat(moves).amax(0)
    assert (largest[budgets == 0] == 0).all(), "age and sex were moved"
    assert (largest <= budgets + 1e-6).all(), "a feature left its budget"

    console = Console()
    table = Table(
        "trained", "clean %", "PGD with 20 steps %", title=f"{len(labels)} patients; a standard error is about 2"
    )
    for words, counts in zip(("without attacks", "against attacks of one step"), right, strict=True):
        table.add_row(words, *(f"{100 * count / len(labels):.1f}" for count in counts.tolist()))
    console.print(table)
    table = Table("feature", "budget", "largest move", title="in the unit of each feature")
    for name, budget, move in zip(data.feature_names, budgets * width, largest * width, strict=True):
        table.add_row(name, f"{budget:g}", f"{move:.3g}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    main(parser.parse_args().epochs)
