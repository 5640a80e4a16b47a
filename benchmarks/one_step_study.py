"""Train one-step recipes side by side, and see which of their ingredients are worth their cost.

    python benchmarks/one_step_study.py --data-dir FOLDER --out benchmarks/results/one-step-study --runs FOLDER

FOLDER holds images (train/CLASS/*, test/CLASS/*). Every variant is trained with every seed in a process of its own, and
the last weights and their average are attacked. The results are OUT.json, OUT.md (with standard errors) and OUT.png:
held-out PGD accuracy over passes and over minutes. A stopped study goes on where it was. Runs whose results are in
OUT.json are not repeated, so that a study can grow on several computers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from one_step_report import KINDS, report
from rich.console import Console
from rich.progress import track
from torch import nn

import rmcla_fast
from rmcla_fast import models, recipes
from rmcla_fast.attacks import evaluate
from rmcla_fast.epsilon import parse_epsilon
from rmcla_fast.files import replacing
from rmcla_fast.models import PreActResNet18
from rmcla_fast.training import TrainConfig, train
from rmcla_fast.training.checkpoint import read
from rmcla_fast.training.metrics import METRICS, read_metrics

SMOOTH = {"label_smoothing": 0.4}
# Each variant is a recipe and the options that differ from those of the protocol.
VARIANTS: dict[str, dict[str, Any]] = {
    "n-fgsm": {"recipe": "n-fgsm"},
    "n-fgsm, smoothed": {"recipe": "n-fgsm", **SMOOTH},
    "r-mc-la": {"recipe": "r-mc-la"},
    "r-mc-la, smoothed": {"recipe": "r-mc-la", **SMOOTH},
    "n-mc-la": {"recipe": "n-mc-la"},
    "n-mc-la, smoothed": {"recipe": "n-mc-la", **SMOOTH},
    "n-fgsm-la, beta 9": {"recipe": "n-fgsm-la"},
    "n-fgsm-la, beta 9, smoothed": {"recipe": "n-fgsm-la", **SMOOTH},
    "n-fgsm-la, beta 30": {"recipe": "n-fgsm-la", "beta": 30.0},
    "n-fgsm-la, beta 30, smoothed": {"recipe": "n-fgsm-la", "beta": 30.0, **SMOOTH},
    "batch statistics": {"recipe": "n-fgsm,attack_mode=train", **SMOOTH},
    "fgsm": {"recipe": "fgsm-rs,start_ratio=0"},
    "fgsm-rs": {"recipe": "fgsm-rs"},
    "cutmix": {"recipe": "n-fgsm", **SMOOTH, "cutmix": True},
    "silu": {"recipe": "n-fgsm", **SMOOTH, "model": "{model}-silu"},
    "silu, hard labels": {"recipe": "n-fgsm", "model": "{model}-silu"},
}
CURVE = ("epoch", "seconds", "clean", "fgsm", "pgd", "weights_clean", "weights_fgsm", "weights_pgd")
SETTINGS = ("data_title", "model", "epochs", "epsilon", "images_per_class", "ema", "lr", "precision", "images")
Job = tuple[str, int]


def thin(num_classes: int, channels: int = 3, activation: str = "relu") -> nn.Module:
    """Return a pre-activation ResNet-18 of 16 channels whose first convolution halves the image: 1/64 of the work."""
    model = PreActResNet18(num_classes, channels, width=16, activation=activation)
    model.stem.stride = (2, 2)
    return model


def thin_silu(num_classes: int, channels: int = 3) -> nn.Module:
    return thin(num_classes, channels, activation="silu")


def narrow(num_classes: int, channels: int = 3) -> nn.Module:
    """Return a pre-activation ResNet-18 of 16 channels that sees the image at its full size: 1/16 of the work."""
    return PreActResNet18(num_classes, channels, width=16)


def run_folder(options: argparse.Namespace, job: Job) -> Path:
    words = job[0].replace(",", "").replace(" ", "-")
    return Path(options.runs) / f"{words}-eps{options.epsilon.partition('/')[0]}-{options.epochs}epochs-seed{job[1]}"


def is_complete(options: argparse.Namespace, job: Job) -> bool:
    """Return whether a run has been attacked in every way that is asked for."""
    path = run_folder(options, job) / "study.json"
    if not path.exists():
        return False
    attacks = json.loads(path.read_text())["attacks"]
    return all(set(options.attacks.split(",")) <= set(attacks.get(kind, {})) for kind in options.kinds)


def earlier_results(options: argparse.Namespace) -> dict[Job, dict[str, Any]]:
    """Return the results in OUT.json by job; none if they were measured with other settings."""
    path = options.out.with_suffix(".json")
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    if any(document["settings"][name] != str(getattr(options, name)) for name in SETTINGS):
        sys.exit(f"{path} was measured with other settings; give another --out")
    return {(result["variant"], result["seed"]): result for result in document["results"]}


def run_job(options: argparse.Namespace, job: Job) -> None:
    """Train and attack one variant with one seed, and write RUN/study.json."""
    variant, seed = job
    folder, changes = run_folder(options, job), dict(VARIANTS[variant])
    model = changes.pop("model", "{model}").format(model=options.model).replace("thin-silu", "thin_silu")
    config = TrainConfig(
        data=options.data,
        data_dir=options.data_dir,
        protocol="fastat",
        model=model,
        epsilon=options.epsilon,
        epochs=options.epochs,
        images_per_class=options.images_per_class or None,
        ema=options.ema,
        lr=options.lr,
        monitor_images=options.monitor_images,
        monitor_every=options.monitor_every,
        label_smoothing=0.0,
        precision=options.precision,
        threads=1 if options.device == "cpu" else None,
        device=options.device,
        checkpoint_every=0,
        seed=seed,
        out=str(folder),
        resume=True,
    )
    train(replace(config, **changes), quiet=not options.job)
    test = rmcla_fast.data.load(options.data, options.data_dir).test
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(test), generator=generator)[: options.images]
    images, labels = test.images[chosen], test.labels[chosen]
    rows = [row for row in read_metrics(folder / METRICS) if row["kind"] == "epoch"]
    document = {
        "variant": variant,
        "seed": seed,
        "passes": recipes.get(VARIANTS[variant]["recipe"]).cost,
        "options": VARIANTS[variant],
        "epsilon": options.epsilon,
        "seconds": rows[-1]["seconds"],
        "overfitted": [row["epoch"] for row in rows if row.get("overfitting")],
        "curve": [{name: row[name] for name in CURVE if name in row} for row in rows],
    }
    path = folder / "study.json"
    known = json.loads(path.read_text())["attacks"] if path.exists() else {}
    document["attacks"] = known | {kind: known.get(kind, {}) for kind in options.kinds}
    best = read(folder / "best.pt")
    document["best"] = {"epoch": best.epoch, "of": best.schedule.best_of, "pgd": best.schedule.best}
    content, asked = read(folder / "checkpoint.pt"), options.attacks.split(",")
    quick = [name for name in asked if name not in ("apgd", "autoattack")]
    for group in (quick, [name for name in asked if name not in quick]):
        for kind in options.kinds:
            attacks = [name for name in group if name not in document["attacks"][kind]]
            if not attacks:
                continue
            which = "best" if kind == "best" else "last"
            network = rmcla_fast.load(folder, which=which, model=model if models.is_factory(model) else None)
            if kind == "weights":
                network.load_state_dict(content.model)
            found = evaluate(
                network.to(options.device),
                images,
                labels,
                attacks=attacks,
                epsilon=parse_epsilon(options.epsilon),
                batch_size=options.batch_size,
            )
            document["attacks"][kind] |= {attack: result.as_json() for attack, result in found.items()}
            with replacing(path) as file:  # now, so that a stop in a long attack keeps the quick ones
                file.write(json.dumps(document, indent=1).encode())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="folder")
    parser.add_argument("--data-dir", help="folder of the images")
    parser.add_argument("--data-title", default="CIFAR-10 (JPEG)", help="what the table calls them")
    parser.add_argument("--runs", required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="writes OUT.json, OUT.md and OUT.png")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", default="one_step_study:thin")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epsilon", default="8/255")
    parser.add_argument("--images-per-class", type=int, default=1000, help="images to train on; 0 takes all")
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--monitor-images", type=int, default=500)
    parser.add_argument("--monitor-every", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1000, help="test images that are attacked")
    parser.add_argument("--attacks", default="clean,ce20,apgd")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["average", "weights"])
    parser.add_argument("--batch-size", type=int, default=250, help="of the attacks")
    parser.add_argument("--workers", type=int, default=2, help="processes at the same time")
    parser.add_argument("--job", nargs=2, metavar=("VARIANT", "SEED"), help="run only this job, in this process")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.job:
        run_job(options, (options.job[0], int(options.job[1])))
        return
    jobs: list[Job] = [(variant, seed) for seed in range(options.seeds) for variant in options.variants]
    earlier = earlier_results(options)
    waiting = [job for job in jobs if job not in earlier and not is_complete(options, job)]
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, __file__, *sys.argv[1:]]

    def start(job: Job) -> int:
        Path(options.runs).mkdir(parents=True, exist_ok=True)
        with open(f"{run_folder(options, job)}.log", "w") as log:
            return subprocess.call([*command, "--job", job[0], str(job[1])], env=environment, stdout=log, stderr=log)

    console = Console(stderr=True)
    failed, stopped = [], False
    with ThreadPoolExecutor(options.workers) as pool:
        try:
            codes = list(track(pool.map(start, waiting), "variants", total=len(waiting), console=console))
            failed = [job for job, code in zip(waiting, codes, strict=True) if code]
        except KeyboardInterrupt:  # the runs get the signal too, and write their checkpoints
            pool.shutdown(cancel_futures=True)
            stopped = True
    for job in jobs:
        if (path := run_folder(options, job) / "study.json").exists():
            earlier[job] = json.loads(path.read_text())
    places = {variant: number for number, variant in enumerate(VARIANTS)}
    results = sorted(earlier.values(), key=lambda result: (places.get(result["variant"], 99), result["seed"]))
    if results:
        print(report(options, results))
    if stopped:
        sys.exit("stopped; the same command goes on")
    if failed:
        sys.exit(f"{len(failed)} runs failed: {failed}; their logs are beside their folders in {options.runs}")


if __name__ == "__main__":
    main()
