"""Train every recipe on digits with two epsilons and three seeds, to see what each part of the method adds.

    python benchmarks/digits_recipes.py --out benchmarks/results/digits-recipes

Each network is trained with the defaults for digits, and attacked with its own epsilon on the 360 test images: clean,
FGSM and CE20 for every seed, and AutoAttack, which takes twenty times as long, for the first seed. The results are
written to OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from rich.console import Console
from rich.progress import track

import rmcla_fast
from rmcla_fast import recipes
from rmcla_fast.attacks import evaluate
from rmcla_fast.training import TrainConfig, train

Job = tuple[str, float, int]
FAST_ATTACKS = ("clean", "fgsm", "ce20")


def accuracies(job: Job) -> dict[str, float]:
    """Train one model; return its accuracy in % under each attack, and the minutes of training."""
    recipe, epsilon, seed = job
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = train(TrainConfig(data="digits", recipe=recipe, epsilon=epsilon, seed=seed, out=f"{folder}/run"))
        minutes = (time.perf_counter() - began) / 60
        model = rmcla_fast.load(run)
    test = rmcla_fast.data.load("digits").test
    attacks = (*FAST_ATTACKS, "autoattack") if seed == 0 else FAST_ATTACKS
    found = evaluate(model, test.images, test.labels, attacks=attacks, epsilon=epsilon)
    return {name: result.accuracy for name, result in found.items()} | {"minutes": minutes}


def markdown_table(rows: list[dict[str, Any]], about: dict[str, Any], seeds: int) -> str:
    lines = [
        f"Digits, {seeds} seeds: mean (lowest to highest). AutoAttack: only the first seed. "
        f"{about['machine']}, {about['cores']} cores, torch {about['torch']}, commit {about['commit']}. "
        "Made by `python benchmarks/digits_recipes.py`.",
        "",
        "| recipe | passes | epsilon | clean | FGSM | CE20 | AutoAttack |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{statistics.mean(row[name]):.1f} ({min(row[name]):.1f} to {max(row[name]):.1f})" for name in FAST_ATTACKS
        ]
        cost = recipes.get(row["recipe"]).cost
        lines.append(
            f"| {row['recipe']} | {cost:g}F | {row['epsilon']:g} | {' | '.join(cells)} | {row['autoattack'][0]:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.15, 0.2])
    parser.add_argument("--recipes", nargs="+", default=list(recipes.names()))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="writes OUT.json and OUT.md")
    options = parser.parse_args()

    points = [(recipe, epsilon) for recipe in options.recipes for epsilon in options.epsilons]
    jobs = [(*point, seed) for point in points for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        progress = track(pool.map(accuracies, jobs), "recipes", total=len(jobs), console=Console(stderr=True))
        results = list(progress)
    rows = []
    for number, (recipe, epsilon) in enumerate(points):
        of_point = results[number * options.seeds : (number + 1) * options.seeds]
        columns = {name: [result[name] for result in of_point] for name in (*FAST_ATTACKS, "minutes")}
        rows.append({"recipe": recipe, "epsilon": epsilon, **columns, "autoattack": [of_point[0]["autoattack"]]})
    about = describe_machine(torch.device("cpu"))
    text = markdown_table(rows, about, options.seeds)
    options.out.with_suffix(".json").write_text(json.dumps({"context": about, "rows": rows}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
