"""Train ResNet-18 on CIFAR-10 to withstand adversarial images, as fast as one GPU can, and print when it does.

    python examples/speedrun.py --data cifar10 --data-dir FOLDER
    python examples/speedrun.py --data folder --data-dir FOLDER           # your own images: train/CLASS/*, test/CLASS/*
    python examples/speedrun.py --data digits --model small-cnn --epsilon 0.15 --epochs 20 --smoothing 0 --levels 45 60

It needs torch, and scikit-learn for the digits. The recipe is N-FGSM (de Jorge et al., NeurIPS 2022), one attack step
from noise of twice epsilon, with label smoothing and an average of the weights. It prints the seconds of training after
which the average withstands PGD on 45, 48 and 50 % of the images that were held out, and at the end the accuracy on
test images: clean, under PGD, and under AutoAttack. The seconds count compiling, and do not count these measurements.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import rmcla_fast
from rmcla_fast import augment, recipes
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.training import ExponentialAverage, TrainStep
from rmcla_fast.training.schedule import Schedule, build_optimizer, set_rate


def pgd_accuracy(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Return the accuracy in % under ten steps of PGD."""
    found = rmcla_fast.attacks.pgd(
        model, images, labels, epsilon=epsilon, step_size=epsilon / 4, steps=10, objective="ce"
    )
    with torch.no_grad():
        return 100 * float((model(found).argmax(1) == labels).double().mean())


def main(options: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = on_gpu
    data = rmcla_fast.data.load(options.data, options.data_dir)  # uint8 images (N, C, H, W) and int64 labels (N,)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[: min(1000, len(order) // 10)], order[min(1000, len(order) // 10) :]
    images, labels = data.train.images[kept].to(device), data.train.labels[kept].to(device)
    watched = data.train.images[held_out].to(device), data.train.labels[held_out].to(device)

    layout = torch.channels_last if on_gpu else torch.contiguous_format
    channels = data.train.shape[0]
    model = rmcla_fast.models.create(options.model, data.num_classes, channels).to(device, memory_format=layout)
    average = ExponentialAverage(model, options.decay)
    optimizer = build_optimizer(model, options.lr, momentum=0.9, weight_decay=5e-4)
    recipe = recipes.get("n-fgsm").replace(epsilon=options.epsilon, label_smoothing=options.smoothing)
    precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    step = TrainStep(model, optimizer, recipe, ema=average, precision=precision, seed=options.seed)

    updates = len(labels) // options.batch_size
    if updates == 0:
        raise SystemExit(f"{len(labels)} images are fewer than a batch of {options.batch_size}; give --batch-size")
    schedule = Schedule("one-cycle", options.lr, options.epochs * updates)
    seconds, levels, reached = 0.0, sorted(options.levels), 0
    print(
        f"{options.model}, {len(labels):,} images, {options.epochs} epochs of {updates} updates, {precision}, {device}"
    )
    for epoch in range(options.epochs):
        began = time.perf_counter()
        order = torch.randperm(len(labels), device=device)
        for number in range(updates):
            set_rate(optimizer, schedule.rate(epoch * updates + number))
            index = order[number * options.batch_size : (number + 1) * options.batch_size]
            batch = images[index]
            if options.data != "digits":  # these are too small to be cropped, and a mirrored digit is another one
                batch = augment(images, index, rng=step.rng, flip=options.data != "svhn", memory_format=layout)
            loss = step(batch, labels[index])
        if (epoch + 1) * updates < average.horizon:
            average.restart(model)  # otherwise the average would keep too much of the random weights
        loss_now = float(loss)  # waits for the GPU
        seconds += time.perf_counter() - began
        if (epoch + 1) % options.measure_every == 0 or epoch + 1 == options.epochs:
            found = pgd_accuracy(average, *watched, options.epsilon)
            print(f"epoch {epoch + 1}: {seconds:.1f} s, loss {loss_now:.3f}, held-out PGD {found:.1f} %", flush=True)
            while reached < len(levels) and found >= levels[reached]:
                print(f"* {levels[reached]:g} % after {seconds:.1f} s")
                reached += 1
    for level in levels[reached:]:
        print(f"* {level:g} % was not reached")

    test = data.test.images[: options.images], data.test.labels[: options.images]
    attacks = "clean,ce20,autoattack"
    result = rmcla_fast.attacks.evaluate(average, *test, attacks=attacks, epsilon=options.epsilon)
    for name, words in (("clean", "clean"), ("ce20", "PGD"), ("autoattack", "AutoAttack")):
        print(f"{words} accuracy {result[name].accuracy:.1f} % ± {result[name].standard_error:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epsilon", type=parse_epsilon, default=8 / 255, help="such as 8/255 or 0.15")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.4, help="label smoothing")
    parser.add_argument("--decay", type=float, default=0.9995, help="of the average, per update")
    parser.add_argument("--measure-every", type=int, default=5, help="epochs")
    parser.add_argument("--levels", type=float, nargs="+", default=[45, 48, 50], help="held-out PGD accuracies in %%")
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked at the end")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(parser.parse_args())
    except (UserError, ValueError) as error:  # such as a folder that is missing, or an unknown model
        raise SystemExit(str(error)) from error
