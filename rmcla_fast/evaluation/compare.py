"""The comparison of several runs: accuracy under each attack, curves, and signs of gradient masking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.attacks.batches import as_images
from rmcla_fast.attacks.checked_model import CheckedModel
from rmcla_fast.attacks.suite import BATCH_SIZE, TITLES, Progress
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation import curves, masking, plots
from rmcla_fast.evaluation.report import as_json, setting
from rmcla_fast.evaluation.results import evaluate_run, known_results
from rmcla_fast.evaluation.run import Run, evenly_spaced

EPSILON_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
ATTACKS_FOR_THE_VERDICT = ("clean", "fgsm", "ce20")


@dataclass
class Compared:
    """What was measured of one run. Accuracies are in %.

    Attributes:
        run: the run.
        results: the result of each attack, by its name.
        epsilons: the epsilons of the curve over epsilon.
        at_epsilon: the accuracy under CE20 at each of `epsilons`.
        at_iteration: the accuracy after 1, 2, ... iterations of one PGD attack.
        minutes: the minutes of training at which accuracy was measured, and the accuracy under PGD then.
        surface: the coordinates and the loss around one image, or None if no image is classified correctly by all runs.
        at_large_epsilon: the accuracy under CE20 at an epsilon that hides every image.
        name: the name of the run in tables and pictures.
    """

    run: Run
    results: dict[str, AttackResult]
    epsilons: list[float]
    at_epsilon: list[float]
    at_iteration: list[float]
    minutes: tuple[list[float], list[float]]
    surface: tuple[Tensor, Tensor] | None
    at_large_epsilon: float
    name: str

    @property
    def accuracies(self) -> dict[str, float]:
        return {name: result.accuracy for name, result in self.results.items()}

    @property
    def precision(self) -> str:
        return self.results["clean"].precision

    @property
    def verdict(self) -> str:
        return masking.verdict(
            self.accuracies, self.at_iteration, self.at_large_epsilon, self.run.chance, len(self.run.labels)
        )

    def as_json(self, epsilon: float) -> dict[str, Any]:
        return {
            "run": str(self.run.folder),
            "recipe": self.run.recipe,
            **as_json(self.results, epsilon=epsilon, model=self.run.network, data=self.run.data),
            "ce20_over_epsilon": dict(zip(map(format_epsilon, self.epsilons), self.at_epsilon, strict=True)),
            "pgd_over_iterations": self.at_iteration,
            "pgd_over_training_minutes": list(zip(*self.minutes, strict=True)),
            "verdict": self.verdict,
        }


def common_epsilon(runs: Sequence[Run], asked: float | None) -> float:
    """Return the epsilon to attack all runs with: `asked`, or else the one that they were trained with.

    Raises:
        UserError: the runs have different data, one run is named twice, or `asked` is None and the runs were trained
            with different epsilons.
    """
    if len({(run.data, run.identity["images_sha256"]) for run in runs}) > 1:
        names = ", ".join(f"{run.folder} on {run.data} {run.record.options.data_dir or ''}".strip() for run in runs)
        raise UserError(f"runs of different data cannot be compared: {names}")
    folders = [run.folder.resolve() for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{run.folder} is named twice")
    if asked is not None:
        return asked
    trained = {run.epsilon for run in runs}
    if len(trained) > 1:
        shown = ", ".join(sorted(format_epsilon(value) for value in trained))
        raise UserError(f"the runs were trained with different epsilons ({shown}); choose one with --epsilon")
    return trained.pop()


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return a different name for each run: the name of its folder, or the folder's path if two names are equal."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def compare(
    runs: Sequence[Run],
    attacks: Sequence[str],
    *,
    epsilon: float,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
    precision: str = "fp32",
) -> list[Compared]:
    """Attack every run and measure its curves.

    Known results are read from the evaluation.json of each run, and new ones are written to it.
    """
    wanted = [name for name in TITLES if name in attacks or name in ATTACKS_FOR_THE_VERDICT]
    names = names_of(runs)
    epsilons = sorted({min(1.0, ratio * epsilon) for ratio in EPSILON_RATIOS} | {masking.LARGE_EPSILON})
    shown = _common_image(runs, precision)
    found = []
    for run, name in zip(runs, names, strict=True):

        def report(part: str, fraction: float, name: str = name) -> None:
            if progress is not None:
                progress(f"{name}: {part}", fraction)

        asked: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "precision": precision}
        results = evaluate_run(run, wanted, epsilon=epsilon, progress=report, **asked)
        before = known_results(run, epsilon, seed, precision)
        if "autoattack" in before:  # the most reliable result is shown even if it was not asked for
            results |= {"autoattack": before["autoattack"]}
        data = (run.model, run.images, run.labels)
        over = curves.over_epsilon(*data, epsilons, report=partial(report, "over epsilon"), **asked)
        steps = curves.over_iterations(*data, epsilon, report=partial(report, "over iterations"), **asked)
        kept = [(e, a) for e, a in zip(epsilons, over, strict=True) if e <= 2 * epsilon + 1e-9]
        surface = None
        if shown is not None:
            image, label = run.images[shown], int(run.labels[shown])
            surface = curves.loss_surface(run.model, image, label, epsilon, precision=precision)
        found.append(
            Compared(
                run,
                results,
                [e for e, _ in kept],
                [a for _, a in kept],
                steps,
                curves.training_minutes(run.folder),
                surface,
                over[epsilons.index(masking.LARGE_EPSILON)],
                name,
            )
        )
    return found


def _common_image(runs: Sequence[Run], precision: str) -> int | None:
    """Return the row of a test image that every model classifies correctly; None if none of 256 images is."""
    rows = evenly_spaced(len(runs[0].labels))
    right = torch.ones(len(rows), dtype=torch.bool)
    for run in runs:
        device = next((p.device for p in run.model.parameters()), torch.device("cpu"))
        answers = CheckedModel(run.model, precision=precision).predict(as_images(run.images[rows].to(device))).cpu()
        right &= answers == run.labels[rows]
    return int(rows[right.int().argmax()]) if bool(right.any()) else None


def draw(found: Sequence[Compared], attacks: Sequence[str], epsilon: float, path: Path) -> Path:
    """Draw comparison.png: accuracy under each attack on the left, and over epsilon on the right."""
    shown = [name for name in TITLES if name in attacks or name == "autoattack"]
    left = max(6.4, 0.17 * len(shown) * len(found) + 1)  # inches; the numbers above the bars must not overlap
    figure = plots.new_figure(left + 4.8, 4.2)
    bars, over = figure.subplots(1, 2, width_ratios=(left, 4.8))
    series: dict[str, dict[str, float | str]] = {c.name: {"autoattack": "not run", **c.accuracies} for c in found}
    plots.accuracy_bars(bars, series, shown)
    run = found[0].run
    bars.set_title(f"{run.data}, {setting(epsilon, found[0].precision)}", loc="left", fontsize=11)
    plots.lines(over, {c.name: (c.epsilons, c.at_epsilon) for c in found}, xlabel="epsilon", ylabel="accuracy (%)")
    over.axvline(epsilon, color=plots.FAINT, linewidth=0.9, linestyle=":")
    over.set_title("CE20 over epsilon", loc="left", fontsize=11)
    plots.legend_above(figure, bars)
    return plots.save(figure, path)


def draw_details(found: Sequence[Compared], epsilon: float, path: Path) -> Path:
    """Draw details.png: accuracy over iterations and over minutes of training, and each run's loss surface."""
    columns = max(2, min(4, len(found)))
    rows = -(-len(found) // columns)
    figure = plots.new_figure(max(9.0, 3.3 * columns), 4.0 + 3.1 * rows)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.8, 3.1 * rows))
    iterations, minutes = upper.subplots(1, 2)
    for number, one in enumerate(found):
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        steps, name = range(1, len(one.at_iteration) + 1), plots.label(one.name)
        iterations.plot(steps, one.at_iteration, color=colour, linewidth=1.8, label=name)
        if one.minutes[0]:
            marker = plots.MARKERS[number % len(plots.MARKERS)] if len(one.minutes[0]) <= 15 else ""
            minutes.plot(*one.minutes, color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
    iterations.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    iterations.set_xticks(ticks, [str(tick) for tick in ticks])
    iterations.minorticks_off()
    iterations.set(xlabel="PGD iterations (log scale)", ylabel="accuracy (%)", ylim=(0, 104))
    iterations.set_title(f"over iterations, {setting(epsilon, found[0].precision)}", loc="left", fontsize=11)
    minutes.set(xlabel="training minutes", ylabel="PGD-10 accuracy (%)", ylim=(0, 104), xlim=(0, None))
    minutes.set_title("while training, on held-out images", loc="left", fontsize=11)
    for axes in (iterations, minutes):
        plots.simplify_frame(axes)
    plots.legend_above(figure, iterations)
    lower.suptitle("loss around one image", x=0.01, ha="left", fontsize=11)
    _draw_surfaces(lower, found, rows, columns)
    return plots.save(figure, path)


def _draw_surfaces(figure: Any, found: Sequence[Compared], rows: int, columns: int) -> None:
    for number, one in enumerate(found):
        axes = figure.add_subplot(rows, columns, number + 1, projection="3d")
        name = plots.label(one.name, 36)
        if one.surface is None:
            axes.set_axis_off()
            axes.set_title(f"{name}\n(no image that all runs classify correctly)", fontsize=9)
            continue
        grid, loss = one.surface
        along, across = torch.meshgrid(grid, grid, indexing="ij")
        axes.plot_surface(
            along.numpy(), across.numpy(), loss.numpy(), cmap="viridis", linewidth=0, rcount=31, ccount=31
        )
        edge = float(grid[-1])
        ends = ([-edge, 0, edge], [r"$-\epsilon$", "0", r"$\epsilon$"])
        axes.set_xticks(*ends)
        axes.set_yticks(*ends)
        axes.set_xlabel("gradient's sign", fontsize=8, labelpad=-2)
        axes.set_ylabel("random sign", fontsize=8, labelpad=-2)
        axes.tick_params(labelsize=7, pad=0)
        axes.view_init(elev=28, azim=-125)
        axes.set_box_aspect(None, zoom=0.88)
        axes.set_title(name, fontsize=9, y=0.99)
