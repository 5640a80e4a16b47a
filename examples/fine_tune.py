"""Make a network robust that was trained without attacks, by a few epochs of adversarial fine-tuning.

    python examples/fine_tune.py

It needs torch, rich, and scikit-learn for the images. It prints the accuracies before and after the fine-tuning,
and those of the same epochs from random weights.
"""

from __future__ import annotations

import argparse
import copy

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rmcla_fast
from rmcla_fast import Recipe, adversarial_example, recipes, soft_cross_entropy

EPSILON = 0.15  # pixels lie in [0, 1]
BATCH_SIZE = 64
ATTACKS = {"clean": "clean", "ce20": "PGD", "apgd": "APGD"}


def fit(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, *, epochs: int, lr: float) -> None:
    """Train the model as the recipe says; "standard" trains on the clean images, with one-hot labels."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    updates = epochs * (len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=updates)
    rng = torch.tensor([0, 0], device=images.device)  # (seed, step) of the attack's noise
    for _ in range(epochs):
        order = torch.randperm(len(labels), device=labels.device)
        for index in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            example = adversarial_example(model, images[index], labels[index], recipe, rng=rng)
            targets = labels[index] if example.soft_labels is None else example.soft_labels
            loss = soft_cross_entropy(model(example.images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            rng[1] += 1


def main(epochs: int, tuning_epochs: int, test_images: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    train = data.train.images.to(device), data.train.labels.to(device)
    test = data.test.images[:test_images], data.test.labels[:test_images]
    model = rmcla_fast.models.create("small-cnn", data.num_classes, 1).to(device)

    untrained = copy.deepcopy(model)
    fit(model, *train, recipes.get("standard"), epochs=epochs, lr=0.1)
    tuned = copy.deepcopy(model)
    # With R-MC-LA in place of N-FGSM, this fine-tuning reached only 28 % under PGD.
    recipe = recipes.get("n-fgsm").replace(epsilon=EPSILON)
    for network in (tuned, untrained):
        fit(network, *train, recipe, epochs=tuning_epochs, lr=0.1)

    table = Table("accuracy %", *ATTACKS.values(), title=f"{len(test[1])} test images, epsilon {EPSILON}")
    for words, network in {
        f"before: {epochs} epochs without attacks": model,
        f"after {tuning_epochs} epochs of fine-tuning": tuned,
        f"the same {tuning_epochs} epochs from random weights": untrained,
    }.items():
        found = rmcla_fast.attacks.evaluate(network, *test, attacks=ATTACKS, epsilon=EPSILON)
        table.add_row(words, *(f"{found[name].accuracy:.1f} ± {found[name].standard_error:.1f}" for name in ATTACKS))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="without attacks")
    parser.add_argument("--tuning-epochs", type=int, default=5)
    parser.add_argument("--test-images", type=int, default=360)
    options = parser.parse_args()
    main(options.epochs, options.tuning_epochs, options.test_images)
