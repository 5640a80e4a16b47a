"""Compare ways to get batch norm's statistics for the average of the weights of a run.

    python benchmarks/average_statistics.py RUN... --data-dir FOLDER --json OUT.json

RUN is a run of `one_step_study.py`, or of `rmcla train --ema ...` on the data set "folder". The statistics are averaged
like the weights (as the library does), copied from the weights, or estimated anew for the average from 2,560 training
images, adversarial or clean, without augmentation. Each is attacked on the same test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from torch import Tensor, nn

import rmcla_fast
from rmcla_fast import adversarial_example, models, recipes
from rmcla_fast.attacks import evaluate
from rmcla_fast.data import ImageSet
from rmcla_fast.training.checkpoint import Checkpoint, read

BATCH, IMAGES = 128, 2560


def network(folder: Path, content: Checkpoint, weights: dict[str, Tensor]) -> nn.Module:
    name = content.config["model"]
    model = rmcla_fast.load(folder, model=name if models.is_factory(name) else None)
    model.load_state_dict(weights)
    return model


def estimated(folder: Path, content: Checkpoint, train: ImageSet, adversarial: bool) -> nn.Module:
    """Return the average with statistics that are the mean over batches of training images."""
    assert content.ema is not None
    model, attacked = (network(folder, content, content.ema) for _ in range(2))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the running statistics are then the mean over all batches
    recipe = recipes.get(content.config["recipe"]).replace(epsilon=content.config["epsilon"])
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:IMAGES]
    for number, index in enumerate(rows.split(BATCH)):
        images, labels = train.images[index], train.labels[index]
        shown = images.float() / 255
        if adversarial:
            shown = adversarial_example(attacked, images, labels, recipe, rng=torch.tensor([0, number])).images
        model.train()
        with torch.no_grad():
            model(shown)
    return model.eval()


def measure(folder: Path, data: Any, images: int) -> dict[str, dict[str, float]]:
    content = read(folder / "checkpoint.pt")
    assert content.ema is not None, f"{folder} has no average"
    copied = {name: content.model[name] if "running" in name else value for name, value in content.ema.items()}
    models = {
        "averaged": network(folder, content, content.ema),
        "copied from the weights": network(folder, content, copied),
        "estimated on adversarial images": estimated(folder, content, data.train, adversarial=True),
        "estimated on clean images": estimated(folder, content, data.train, adversarial=False),
        "the weights with their own": network(folder, content, content.model),
    }
    rows = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:images]
    test, labels, found = data.test.images[rows], data.test.labels[rows], {}
    for name, model in models.items():
        results = evaluate(model, test, labels, attacks="clean,ce20", epsilon=content.config["epsilon"])
        found[name] = {attack: result.accuracy for attack, result in results.items()}
        error = results["ce20"].standard_error
        print(f"{name:34} clean {found[name]['clean']:.1f}  CE20 {found[name]['ce20']:.1f} ± {error:.1f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = rmcla_fast.data.load("folder", options.data_dir)
    found = {}
    for run in options.runs:
        print(run.name)
        found[run.name] = measure(run, data, options.images)
    if options.json:
        about = describe_machine(torch.device("cpu"))
        options.json.write_text(
            json.dumps({"context": about, "images": options.images, "runs": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
