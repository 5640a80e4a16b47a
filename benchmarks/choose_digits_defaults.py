"""Choose the learning rate, batch size and weight decay for digits on held-out training images.

    python benchmarks/choose_digits_defaults.py --json benchmarks/results/digits_defaults.json

R-MC-LA is trained on nine tenths of the training images for every point of the grid and every seed. The points are
ranked by PGD-10 accuracy on the held-out tenth, which differs from seed to seed. The test images are not used.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from rmcla_fast.training import TrainConfig, train

RATES = (0.1, 0.2, 0.3)
BATCH_SIZES = (32, 64)
DECAYS = (5e-4, 1.5e-3, 3e-3, 6e-3)
HELD_OUT = 143  # a tenth of the 1,437 training images

Point = tuple[float, int, float]


def held_out_accuracy(job: tuple[Point, int]) -> tuple[float, float]:
    """Train one model; return its clean and PGD-10 accuracy in % on the held-out images after the last epoch."""
    (rate, batch_size, decay), seed = job
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            TrainConfig(
                data="digits",
                recipe="r-mc-la",
                lr=rate,
                batch_size=batch_size,
                weight_decay=decay,
                seed=seed,
                monitor_images=HELD_OUT,
                monitor_every=60,
                out=f"{folder}/run",
            )
        )
        last = json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])
    return last["clean"], last["pgd"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    points = list(itertools.product(RATES, BATCH_SIZES, DECAYS))
    jobs = [(point, seed) for point in points for seed in range(100, 100 + options.seeds)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        console = Console(stderr=True)
        results = list(track(pool.map(held_out_accuracy, jobs), "training", total=len(jobs), console=console))
    rows = []
    for number, (rate, batch_size, decay) in enumerate(points):
        of_point = results[number * options.seeds : (number + 1) * options.seeds]
        clean, robust = (sum(column) / options.seeds for column in zip(*of_point, strict=True))
        rows.append({"lr": rate, "batch_size": batch_size, "weight_decay": decay, "clean": clean, "pgd10": robust})
    rows.sort(key=lambda row: -row["pgd10"])
    table = Table(
        "lr",
        "batch size",
        "weight decay",
        "clean",
        "PGD-10",
        title=f"held-out images, mean of {options.seeds} seeds",
    )
    for row in rows:
        rates = (f"{row['lr']:g}", str(row["batch_size"]), f"{row['weight_decay']:g}")
        table.add_row(*rates, f"{row['clean']:.1f}", f"{row['pgd10']:.1f}")
    Console().print(table)
    if options.json:
        options.json.write_text(
            json.dumps({"seeds": options.seeds, "held_out": HELD_OUT, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
