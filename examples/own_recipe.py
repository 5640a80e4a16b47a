"""Change a recipe, write one of your own, and compare both with two that the library has.

    python examples/own_recipe.py

It needs torch, rich, and scikit-learn for the images. It trains one network with each recipe, and prints their cost and
their accuracies. These are of one seed and 360 images, so a gap of two standard errors or less says nothing.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rmcla_fast
from rmcla_fast import Recipe, recipes
from rmcla_fast.training import TrainStep

EPSILON = 0.15  # pixels lie in [0, 1]
BATCH_SIZE = 64
ATTACKS = ("clean", "ce20", "apgd")
RECIPES = (
    recipes.get("standard"),
    recipes.get("n-fgsm"),
    # The paper's method, except that the true class keeps less of its label, and that the label is smoothed.
    recipes.get("r-mc-la+").replace(beta=4.0, label_smoothing=0.1, name="r-mc-la+, softer labels"),
    # Two steps towards the most confusing class, from noise of half the radius. Fields that are not named here keep
    # their defaults, which `help(Recipe)` lists with their meaning.
    Recipe(steps=2, step_ratio=0.75, start_ratio=0.5, target="mc", label_scheme="main", name="two steps (our own)"),
)


def main(epochs: int, test_images: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    test = data.test.images[:test_images], data.test.labels[:test_images]
    updates = len(labels) // BATCH_SIZE
    table = Table("recipe", "cost", "clean %", "PGD %", "APGD %")
    for recipe in track(RECIPES, "training", console=Console(stderr=True)):
        torch.manual_seed(0)  # the same first weights and the same batches for every recipe
        model = rmcla_fast.models.create("small-cnn", data.num_classes, 1).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * updates)
        step = TrainStep(model, optimizer, recipe.replace(epsilon=EPSILON), capture="eager", seed=0)
        for _ in range(epochs):
            order = torch.randperm(len(labels), device=device)
            for index in order[: updates * BATCH_SIZE].split(BATCH_SIZE):
                step(images[index], labels[index])  # the attack, the loss of the recipe, and the update
                schedule.step()
        found = rmcla_fast.attacks.evaluate(model, *test, attacks=ATTACKS, epsilon=EPSILON)
        accuracies = (f"{found[name].accuracy:.1f} ± {found[name].standard_error:.1f}" for name in ATTACKS)
        table.add_row(recipe.name, f"{recipe.cost}F", *accuracies)
    table.caption = f"F is one forward pass; epsilon {EPSILON}, {len(test[1])} test images, {epochs} epochs, one seed"
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--test-images", type=int, default=360)
    options = parser.parse_args()
    main(options.epochs, options.test_images)
