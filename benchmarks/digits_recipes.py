"""Every recipe on digits, at two epsilons, over three seeds: does each step of the method show?

    python benchmarks/digits_recipes.py --out benchmarks/results/digits-recipes

Trains each network anew with the defaults for digits and attacks it at the epsilon it was trained with, on the 360 test
images: clean, FGSM and CE20 for every seed, AutoAttack (twenty times as slow) for the first. Writes OUT.json, OUT.md.
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

from conftest import context
from rich.console import Console
from rich.progress import track

import rmcla_fast
from rmcla_fast import recipes
from rmcla_fast.attacks import evaluate
from rmcla_fast.training import TrainConfig, train

Job = tuple[str, float, int]
QUICK = ("clean", "fgsm", "ce20")


def accuracies(job: Job) -> dict[str, float]:
    """Accuracy in % under each attack, and the minutes of training."""
    recipe, epsilon, seed = job
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = train(TrainConfig(data="digits", recipe=recipe, epsilon=epsilon, seed=seed, out=f"{folder}/run"))
        minutes = (time.perf_counter() - began) / 60
        model = rmcla_fast.load(run)
    test = rmcla_fast.data.load("digits").test
    attacks = (*QUICK, "autoattack") if seed == 0 else QUICK
    found = evaluate(model, test.images, test.labels, attacks=attacks, epsilon=epsilon)
    return {name: result.accuracy for name, result in found.items()} | {"minutes": minutes}


def markdown(rows: list[dict[str, Any]], about: dict[str, Any], seeds: int) -> str:
    lines = [
        f"Digits, {seeds} seeds: mean (least to most). AutoAttack: the first seed. {about['machine']}, "
        f"{about['cores']} cores, torch {about['torch']}, commit {about['commit']}. "
        "Made by `python benchmarks/digits_recipes.py`.",
        "",
        "| recipe | passes | epsilon | clean | FGSM | CE20 | AutoAttack |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{statistics.mean(row[name]):.1f} ({min(row[name]):.1f} to {max(row[name]):.1f})" for name in QUICK]
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
        columns = {name: [result[name] for result in of_point] for name in (*QUICK, "minutes")}
        rows.append({"recipe": recipe, "epsilon": epsilon, **columns, "autoattack": [of_point[0]["autoattack"]]})
    about = context()
    text = markdown(rows, about, options.seeds)
    options.out.with_suffix(".json").write_text(json.dumps({"context": about, "rows": rows}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
