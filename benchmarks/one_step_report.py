"""The report of `one_step_study.py`: a table with standard errors, the raw results, and a picture."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from rmcla_fast.text import markdown

TITLES = {"clean": "clean", "ce20": "CE20", "cw100": "CW100", "apgd": "APGD", "autoattack": "AutoAttack"}
KINDS = ("average", "weights", "best")


def report(options: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """Write OUT.json, OUT.md and OUT.png, and return the table."""
    about = describe_machine(torch.device(options.device))
    lines = [
        f"Images of {options.data_title}, {options.images_per_class or 'all'} of each class to train on, "
        f"{options.epochs} epochs, {options.model.rpartition(':')[2]}, epsilon {options.epsilon}, "
        f"{options.images} test images. "
        f"{about['machine']}, torch {about['torch']}, commit {about['commit']}. Accuracies in %: mean over the seeds ± "
        "standard error of one model's accuracy, which other images of the same kind would give.",
        "",
    ]
    measured = {(kind, name) for result in results for kind in KINDS for name in result["attacks"].get(kind, {})}
    columns = [(kind, name) for kind in KINDS for name in TITLES if (kind, name) in measured]
    heads = [f"{TITLES[name]}, {kind}" for kind, name in columns]
    lines += [f"| variant | passes | seeds | minutes | {' | '.join(heads)} | overfitted from epoch |"]
    lines += ["|---|---|---|---|" + "---|" * (len(heads) + 1)]
    for variant in dict.fromkeys(result["variant"] for result in results):
        same = [result for result in results if result["variant"] == variant]
        cells = []
        for kind, name in columns:
            figures = [found[name] for result in same if name in (found := result["attacks"].get(kind, {}))]
            if not figures:  # not asked for, or stopped before this attack
                cells.append("-")
                continue
            mean = statistics.fmean(figure["accuracy"] for figure in figures)
            error = statistics.fmean(figure["standard_error"] for figure in figures)
            cells.append(f"{mean:.1f} ± {error:.1f}")
        minutes = statistics.fmean(result["seconds"] for result in same) / 60
        first = [str(result["overfitted"][0]) for result in same if result["overfitted"]]
        overfitted = f"{len(first)} of {len(same)}: {', '.join(first)}" if first else "none"
        cells = [markdown(variant), f"{same[0]['passes']}F", str(len(same)), f"{minutes:.1f}", *cells, overfitted]
        lines.append(f"| {' | '.join(cells)} |")
    deviations = {column: seed_deviation(results, *column) for column in columns}
    if any(deviations.values()):
        both = zip(heads, deviations.values(), strict=True)
        shown = [f"{head} {deviation:.1f}" for head, deviation in both if deviation]
        lines += ["", f"Standard deviation between seeds, pooled over the variants: {'; '.join(shown)}."]
    text = "\n".join(lines) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        key: str(value) for key, value in vars(options).items() if key not in ("job", "data_dir", "runs", "out")
    }
    document = {"context": about, "settings": settings, "results": results}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    draw(options.out.with_suffix(".png"), results)
    return text


def seed_deviation(results: list[dict[str, Any]], kind: str, name: str) -> float:
    """Return the standard deviation of an accuracy between seeds, pooled over the variants; 0 without two seeds."""
    by_variant: dict[str, list[float]] = {}
    for result in results:
        if name in result["attacks"].get(kind, {}):
            by_variant.setdefault(result["variant"], []).append(result["attacks"][kind][name]["accuracy"])
    several = [figures for figures in by_variant.values() if len(figures) > 1]
    freedom = sum(len(figures) - 1 for figures in several)
    squares = sum(statistics.variance(figures) * (len(figures) - 1) for figures in several)
    return math.sqrt(squares / freedom) if freedom else 0.0


def draw(path: Path, results: Iterable[dict[str, Any]]) -> None:
    """Draw the first seed's PGD accuracy of the average on held-out images, over passes and over minutes.

    If there are few variants, that of the weights is drawn too.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 6), sharey=True, layout="constrained")
    firsts = {result["variant"]: result for result in reversed(list(results))}
    with_weights = len(firsts) <= 6  # more lines cannot be told apart
    for number, (variant, result) in enumerate(reversed(firsts.items())):
        curve = [row for row in result["curve"] if "pgd" in row]
        color = pyplot.colormaps["tab20"](number % 20)
        scales = ([row["epoch"] * result["passes"] for row in curve], [row["seconds"] / 60 for row in curve])
        for axis, places in zip(axes, scales, strict=True):
            axis.plot(places, [row["pgd"] for row in curve], color=color, label=variant)
            if with_weights:
                axis.plot(places, [row.get("weights_pgd") for row in curve], color=color, linestyle=":", linewidth=0.8)
    dotted = " (dotted: weights)" if with_weights else ", average"
    axes[0].set(xlabel="forward passes per image", ylabel=f"PGD accuracy on held-out images in %{dotted}")
    axes[1].set(xlabel="minutes of training")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
