"""Compare the throughput of PGD with that of torchattacks' PGD, after a check that both are the same attack.

    python benchmarks/bench_pgd.py [--threads 2] [--rounds 15] [--json benchmarks/results/bench_pgd.json]

"ours" takes every step for every image, as torchattacks does. "ours, dropping" is what `evaluate` runs: an image that
fools the model leaves the batch. The rivals run in turn, each in a process of its own. torchattacks is installed by
pip install --no-deps torchattacks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from rmcla_fast import data, load, models
from rmcla_fast.attacks import evaluate, pgd
from rmcla_fast.ops.dispatch import resolve
from rmcla_fast.ops.tensors import to_unit
from rmcla_fast.training import TrainConfig, train

EPSILON, STEPS = 0.15, 20
RIVALS = ("torchattacks", "ours", "ours, dropping")


def trained_model(folder: Path) -> nn.Module:
    """Return a robust small-cnn, trained once on digits: dropping saves the more, the more images fool the model."""
    return load(train(TrainConfig(data="digits", recipe="r-mc-la", epochs=10, out=str(folder), resume=True)))


def cases(folder: Path) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Return a model, its images and their labels for each case by its name."""
    test = data.load("digits").test
    images, labels = to_unit(test.images), test.labels
    torch.manual_seed(0)
    wide = models.create("small-cnn", 10, 3).eval()
    noise = torch.rand(64, 3, 32, 32)
    return {
        "small-cnn, trained, 360 digits": (trained_model(folder), images, labels),
        "small-cnn, untrained, 64 x 3 x 32 x 32": (wide, noise, wide(noise).argmax(1)),
    }


def check(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracies under both attacks; exit where they differ image by image without a random start."""
    step = EPSILON / 4
    ours = pgd(model, images, labels, epsilon=EPSILON, step_size=step, steps=STEPS, random_start=False)
    theirs = torchattacks.PGD(model, eps=EPSILON, alpha=step, steps=STEPS, random_start=False)(images, labels)
    same = ((ours - theirs).abs() <= 1e-6).flatten(1).all(1).float().mean().item()
    accuracy = {
        name: 100 * (model(x).argmax(1) == labels).float().mean().item()
        for name, x in (("ours", ours), ("torchattacks", theirs))
    }
    if abs(accuracy["ours"] - accuracy["torchattacks"]) > 0.3 or same < 0.97:
        sys.exit(f"the attacks differ: {100 * same:.1f} % of the images agree, accuracies {accuracy}")
    return {**accuracy, "images_equal_to_1e-6": 100 * same}


def attack_of(rival: str, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Any]:
    if rival == "torchattacks":
        attack = torchattacks.PGD(model, eps=EPSILON, alpha=EPSILON / 4, steps=STEPS)
        return lambda: attack(images, labels)
    drop = rival == "ours, dropping"
    return lambda: pgd(model, images, labels, epsilon=EPSILON, step_size=EPSILON / 4, steps=STEPS, drop_fooled=drop)


def serve(connection: Connection, rival: str, case: str, threads: int, clock: str, folder: Path) -> None:
    """Attack once, and send the seconds that it took, for every True that comes; end at the first False."""
    torch.set_num_threads(threads)
    now: Callable[[], float] = time.perf_counter if clock == "wall" else time.process_time
    run = attack_of(rival, *cases(folder)[case])
    while connection.recv():
        started = now()
        run()
        connection.send(now() - started)


def interleaved(case: str, rounds: int, threads: int, clock: str, folder: Path) -> dict[str, list[float]]:
    """Return the seconds of each rival in each round; they take turns, after one round that does not count.

    Each has a process of its own, as it would have for a user, since the allocator behaves according to what ran
    before in its process.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for rival in RIVALS:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, rival, case, threads, clock, folder))
        process.start()
        workers[rival] = (process, ours)
    seconds: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    for number in range(rounds + 1):
        for rival, (_, connection) in workers.items():
            connection.send(True)
            taken = connection.recv()
            if number:
                seconds[rival].append(taken)
    for process, connection in workers.values():
        connection.send(False)
        process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-pgd"))
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: on a busy machine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torchattacks": torchattacks.__version__,
        "threads": options.threads,
        "clock": options.clock,
        "load_average": os.getloadavg()[0],
        "backend": resolve("cpu", None),
        "cases": {},
    }
    for name, (model, images, labels) in cases(options.runs).items():
        agreement = check(model, images, labels)
        seconds = interleaved(name, options.rounds, options.threads, options.clock, options.runs)
        # The ratio is taken in each round, since what slows the machine for a while slows all rivals of a round.
        ratios = {
            rival: statistics.median(a / b for a, b in zip(seconds["torchattacks"], seconds[rival], strict=True))
            for rival in RIVALS
        }
        report["cases"][name] = {
            "check": agreement,
            "images_per_second": {rival: len(labels) / statistics.median(taken) for rival, taken in seconds.items()},
            "ratio_to_torchattacks": ratios,
        }
        print(f"{name}, {STEPS} steps: accuracy {agreement['ours']:.1f} (torchattacks {agreement['torchattacks']:.1f})")
        for rival, taken in seconds.items():
            rate = len(labels) / statistics.median(taken)
            print(f"  {rival:15s} {rate:9.0f} images/s  {ratios[rival]:5.2f}x torchattacks")
    model, images, labels = next(iter(cases(options.runs).values()))
    busy = time.process_time()
    result = evaluate(model, images, labels, attacks="ce1000", epsilon=EPSILON)["ce1000"]
    report["ce1000_processor_seconds"] = time.process_time() - busy
    report["ce1000_seconds_360_digits"] = result.seconds
    processor = report["ce1000_processor_seconds"]
    print(f"CE1000 on {len(labels)} digits: {result.seconds:.1f} s ({processor:.1f} of processor)")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
