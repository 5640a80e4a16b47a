"""Evaluate a model that somebody else has trained, and read what the evaluation says about it.

    python examples/any_model.py

It needs torch, rich, and scikit-learn for the images. The model is one that looks robust under FGSM and PGD and is not:
defensive distillation (Papernot et al. 2016, broken by Carlini and Wagner 2017) trained networks at a high temperature.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rmcla_fast

EPSILON = 0.15  # pixels lie in [0, 1]


def somebody_elses_model(images: Tensor, labels: Tensor, epochs: int, temperature: float = 100.0) -> nn.Module:
    """Return a plain network that was trained on logits / temperature, and is used without the division.

    Its logits are so large that softmax is 0 or 1 to the last bit, and the gradient of cross entropy is zero.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(model(images[index]) / temperature, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main(epochs: int, test_images: int) -> None:
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    model = somebody_elses_model(data.train.images / 255, data.train.labels, epochs)

    # The whole evaluation. `model` is any nn.Module from images in [0, 1] to logits; if it expects other images, put
    # the conversion in front of it: nn.Sequential(Normalize(mean, std), model).
    images, labels = data.test.images[:test_images], data.test.labels[:test_images]
    found = rmcla_fast.attacks.evaluate(
        model, images, labels, attacks="clean,fgsm,ce20,cw100,apgd,autoattack", epsilon=EPSILON
    )

    table = Table("attack", "accuracy %", "what its parts fooled", title=f"{len(labels)} images, epsilon {EPSILON}")
    for name, result in found.items():
        parts = ", ".join(f"{part.part} {part.fooled} of {part.attacked}" for part in result.parts)
        table.add_row(name, f"{result.accuracy:.1f} ± {result.standard_error:.1f}", parts)
    console = Console()
    console.print(table)
    for name, result in found.items():
        for note in result.notes:
            console.print(f"* {name}: {note}.", soft_wrap=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--test-images", type=int, default=200)
    options = parser.parse_args()
    main(options.epochs, options.test_images)
