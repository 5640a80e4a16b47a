"""Train in bfloat16 or float16 with torch's autocast and gradient scaling, in a loop of your own.

    python examples/mixed_precision.py --precision bf16

It needs torch, and scikit-learn for the images. It prints the accuracy on clean test images and under PGD, both of the
float32 weights without autocast.
"""

from __future__ import annotations

import argparse

import torch

import rmcla_fast
from rmcla_fast import adversarial_example, recipes, soft_cross_entropy

EPSILON = 0.15  # pixels lie in [0, 1]
BATCH_SIZE = 64


def main(epochs: int, precision: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    model = rmcla_fast.models.create("small-cnn", data.num_classes, 1).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    updates = epochs * (len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=updates)

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    autocast = torch.amp.autocast(device.type, dtype=dtype)
    # Small gradients underflow in float16 and not in bfloat16, which has the exponents of float32.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    recipe = recipes.get("r-mc-la").replace(epsilon=EPSILON)
    rng = torch.tensor([0, 0], device=device)  # (seed, step) of the attack's noise
    for _ in range(epochs):
        order = torch.randperm(len(labels), device=device)
        for index in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            # The attack runs the network, too, so it stands inside autocast: outside it would take float32's time and
            # attack a slightly different network. Its images stay float32: near 1, a bfloat16 pixel would be off by
            # up to 0.002. It needs no scaler, since it takes only the sign of the gradient in the images, and begins
            # with a gradient in the logits that is not divided by the batch size.
            with autocast:
                example = adversarial_example(model, images[index], labels[index], recipe, rng=rng)
            # A block of its own: autocast keeps the weights that it casts until the end of a block, and those were cast
            # for an attack, which needs no gradients of the weights.
            with autocast:
                loss = soft_cross_entropy(model(example.images), example.soft_labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)  # leaves the update out if a gradient overflowed
            scaler.update()
            schedule.step()
            rng[1] += 1

    test_images, test_labels = data.test.images.to(device), data.test.labels.to(device)
    found = rmcla_fast.attacks.evaluate(model, test_images, test_labels, attacks="clean,ce20", epsilon=EPSILON)
    print(f"trained in {precision}, last loss {loss.item():.3f} in {loss.dtype}")
    print(f"clean accuracy {found['clean'].accuracy:.1f} %")
    print(f"PGD accuracy {found['ce20'].accuracy:.1f} % (20 steps, epsilon {EPSILON})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--precision", choices=("bf16", "fp16"), default="bf16")
    options = parser.parse_args()
    main(options.epochs, options.precision)
