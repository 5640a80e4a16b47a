"""Train a network of your own, in a loop of your own, to withstand adversarial images of handwritten digits.

    python examples/your_loop.py

It needs torch, and scikit-learn for the images. At the end it prints the accuracy on clean test images and under PGD.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import rmcla_fast
from rmcla_fast import adversarial_example, recipes, soft_cross_entropy

EPSILON = 0.15  # pixels lie in [0, 1]
BATCH_SIZE = 64


def main(epochs: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    images, labels = data.train.images.to(device), data.train.labels.to(device)

    model = nn.Sequential(  # any module from images in [0, 1] to logits
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, data.num_classes),
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    updates = epochs * (len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=updates)

    recipe = recipes.get("r-mc-la").replace(epsilon=EPSILON)
    rng = torch.tensor([0, 0], device=device)  # (seed, step): the attack's noise is a function of these two
    for _ in range(epochs):
        order = torch.randperm(len(labels), device=device)
        for index in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            # The images are bytes here, and float32 in `example`. For photographs, `augment(images, index, rng=rng)`
            # in place of `images[index]` would crop and flip them.
            example = adversarial_example(model, images[index], labels[index], recipe, rng=rng)
            loss = soft_cross_entropy(model(example.images), example.soft_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            rng[1] += 1  # without this line every batch would get the same noise

    test_images, test_labels = data.test.images.to(device), data.test.labels.to(device)
    found = rmcla_fast.attacks.evaluate(model, test_images, test_labels, attacks="clean,ce20", epsilon=EPSILON)
    print(f"clean accuracy {found['clean'].accuracy:.1f} %")
    print(f"PGD accuracy {found['ce20'].accuracy:.1f} % (20 steps, epsilon {EPSILON})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
