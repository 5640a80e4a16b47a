"""The time of an update that the training loader feeds: crop and flip of a batch on the device, and the update.

    python benchmarks/bench_fed_update.py                                             # preact-resnet18 on random images
    python benchmarks/bench_fed_update.py --precision bf16 --updates 100 --output FILE  # on a GPU

The images are 50,000 random ones of 32x32, held as uint8 on the device.
Each round runs `--updates` updates and waits once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import machine

from rmcla_fast import models, recipes
from rmcla_fast.data import ImageSet
from rmcla_fast.training import TrainStep
from rmcla_fast.training.distributed import World
from rmcla_fast.training.loader import Loader
from rmcla_fast.training.schedule import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preact-resnet18")
    parser.add_argument("--recipe", default="r-mc-la")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--updates", type=int, default=2, help="updates a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8)
    held = ImageSet(images, torch.randint(0, 10, (options.images,)))
    model = models.create(options.model, 10).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    step = TrainStep(
        model, build_optimizer(model, 0.01, 0.9, 2e-4), recipes.get(options.recipe), precision=options.precision
    )
    loader = Loader(held, options.batch, 0, device, step.rng, augment=True, flip=True, world=World())
    batches = (batch for epoch in range(10**6) for batch in loader.epoch(epoch))

    def timed_round() -> float:
        started = time.perf_counter()
        for _ in range(options.updates):
            step(*next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / options.updates

    for _ in range(5):  # compile and capture
        step(*next(batches))
    timed_round()
    seconds = [timed_round() for _ in range(options.rounds)]
    print(
        f"{step.capture}: {1e3 * statistics.median(seconds):.3f} ms a fed update, fastest round "
        f"{1e3 * min(seconds):.3f} ms, {options.batch / statistics.median(seconds):,.0f} images/s"
    )
    if options.output:
        settings = {name: str(value) for name, value in vars(options).items() if name != "output"}
        document = {
            "context": machine.describe_machine(device),
            "options": settings,
            "capture": step.capture,
            "seconds": seconds,
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
