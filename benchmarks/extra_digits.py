"""Train on 200 digits with and without extra images, to see what the extra ones add at the same number of updates.

    python benchmarks/extra_digits.py --out benchmarks/results/extra-digits

The extra images are the other training digits with their true labels: a generator could make no better ones. They are
written into an .npz file, and `rmcla train --extra-data` reads it. Each network is trained with the defaults for digits
and attacked on the 360 test images. The results are written to OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from rich.console import Console
from rich.progress import track

import rmcla_fast
from rmcla_fast import data
from rmcla_fast.attacks import evaluate
from rmcla_fast.data.splits import per_class
from rmcla_fast.training import TrainConfig, train

PER_CLASS = 20
ATTACKS = ("clean", "ce20", "autoattack")


def write_others(path: Path, seed: int) -> int:
    """Write the training digits that a run with this seed leaves out; return their number."""
    digits = data.load("digits")
    left_out = torch.ones(len(digits.train), dtype=torch.bool)
    left_out[per_class(digits.train, PER_CLASS, digits.num_classes, seed)] = False
    images = digits.train.images[left_out].permute(0, 2, 3, 1)
    np.savez(path, image=images.numpy(), label=digits.train.labels[left_out].numpy())
    return len(images)


def accuracies(fraction: float, seed: int, recipe: str, epochs: int | None) -> dict[str, float]:
    """Train one model; return its accuracy in % under each attack. A fraction of 0 has no extra images."""
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder) / "others.npz"
        write_others(others, seed)
        options: dict[str, Any] = {"recipe": recipe, "seed": seed, "epochs": epochs, "out": f"{folder}/run"}
        if fraction:
            options |= {"extra_data": others, "extra_fraction": fraction}
        run = train(TrainConfig(data="digits", images_per_class=PER_CLASS, monitor_images=0, device="cpu", **options))
        model = rmcla_fast.load(run)
    test = data.load("digits").test
    found = evaluate(model, test.images, test.labels, attacks=ATTACKS, epsilon=0.15)
    return {name: result.accuracy for name, result in found.items()}


def markdown_table(rows: list[dict[str, Any]], about: dict[str, Any], command: str) -> str:
    lines = [
        f"{10 * PER_CLASS} digits and extra ones, epsilon 0.15, {len(rows[0]['clean'])} seeds: mean (lowest to "
        "highest). "
        f"{about['machine']}, {about['cores']} cores, torch {about['torch']}, commit {about['commit']}. "
        f"Made by `{command}`.",
        "",
        "| share of extra images in a batch | clean | CE20 | AutoAttack |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{statistics.mean(row[name]):.1f} ({min(row[name]):.1f} to {max(row[name]):.1f})" for name in ATTACKS]
        lines.append(f"| {row['fraction'] or 'none'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--recipe", default="r-mc-la")
    parser.add_argument("--epochs", type=int, help="the default is that of the digits")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="writes OUT.json and OUT.md")
    options = parser.parse_args(arguments)
    rows = []
    for fraction in track(options.fractions, "shares", console=Console(stderr=True)):
        found = [accuracies(fraction, seed, options.recipe, options.epochs) for seed in range(options.seeds)]
        rows.append({"fraction": fraction, **{name: [one[name] for one in found] for name in ATTACKS}})
    about = describe_machine(torch.device("cpu"))
    text = markdown_table(rows, about, f"python benchmarks/extra_digits.py --out {options.out}")
    options.out.with_suffix(".json").write_text(json.dumps({"context": about, "rows": rows}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
