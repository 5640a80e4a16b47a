"""The table of `rmcla reproduce fastat`: our recipes, and below them the published methods of the FastAT Benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.evaluation.report import write_json, write_text
from rmcla_fast.evaluation.run import load_data
from rmcla_fast.paper import fastat
from rmcla_fast.paper.fastat_plot import draw
from rmcla_fast.paper.plan import Plan, ReproducedRow
from rmcla_fast.paper.published import DATA_TITLES, PublishedRow
from rmcla_fast.paper.report import command, document
from rmcla_fast.text import markdown, markdown_code
from rmcla_fast.training.remarks import against_protocol

HEADS = {
    "clean": "clean",
    "ce10": "PGD-10",
    "ce20": "PGD-20",
    "ce50": "PGD-50",
    "autoattack": TITLES["autoattack"],
    "seconds": "seconds of training",
    "memory_gib": "GiB of GPU memory",
}
CIFAR10_CLASSES = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
TITLES_OF_DATA = DATA_TITLES | {"tiny-imagenet": "Tiny-ImageNet"}


def published_data(plan: Plan) -> str:
    """Return the data set whose published rows are shown; an empty text if nothing was published for these images.

    A folder of images with CIFAR-10's classes is compared with CIFAR-10, and `differences` says that it is a folder.
    """
    if fastat.published_rows(plan.data):
        return plan.data
    if plan.data == "folder" and set(load_data(plan.data, plan.data_dir).classes) == CIFAR10_CLASSES:
        return "cifar10"
    return ""


def differences(plan: Plan, rows: Sequence[ReproducedRow]) -> list[str]:
    """Return a sentence for everything that is known to differ from the benchmark."""
    config, data = rows[0].config, published_data(plan)
    found = []
    if not data:
        found.append(f"Data: {plan.data}, for which the FastAT Benchmark published nothing.")
    elif data != plan.data:
        found.append(
            f"Data: a folder of images with the classes of {TITLES_OF_DATA[data]}, while the benchmark has the "
            "original images. JPEG copies have lost detail, so the published figures are only a guide."
        )
    said = next((row.remarks for row in rows if row.remarks), against_protocol(config))
    found += [f"{sentence}." for sentence in said]
    if config.precision != "fp32":
        found.append(f"Precision: the networks are trained in {config.precision}, while the benchmark has fp32.")
    found.append(
        f"Seeds: {', '.join(map(str, plan.seeds))}; the benchmark's figures are means and deviations over 0, 1 and 2."
    )
    if not plan.autoattack:
        found.append("AutoAttack was not run, so robust accuracies may be overstated.")
    used = [recipes.get(row.source.recipe) for row in rows]
    found += [
        "PGD: an image counts as misclassified if any iterate fools the model; in the benchmark the last one counts.",
        "Weight decay acts on weights alone; in the benchmark also on biases and batch norm.",
        "The learning rate changes at every update; in the benchmark once an epoch.",
        "The average of the weights begins anew after each epoch of the first 2,000 updates; in the benchmark it keeps "
        "a share of the random weights that training begins with.",
        "Of equally good epochs the last one is evaluated; in the benchmark the one with the highest clean accuracy.",
    ]
    if all(recipe.attack_mode == "eval" for recipe in used):
        found.append(
            "The attack of a training step sees the network in evaluation mode; in the benchmark's N-FGSM it is in "
            "training mode, and the noisy images count in the statistics of batch norm."
        )
    found.append("That attack ascends the loss without label smoothing; in the benchmark's N-FGSM with it.")
    if any(recipe.start_ratio > 1 for recipe in used):
        found.append("The noisy start of N-FGSM may leave the pixel range; in the benchmark it is clipped to it.")
    found += [
        "Seconds are those of the updates, without measurements on held-out images, as in the benchmark, whose GPU is "
        "not known. They cannot be compared unless the GPUs are.",
        "Memory is the most that torch had allocated at a time, as in the benchmark; ours includes the training "
        "images, if they fit on the GPU.",
    ]
    return found


def write(plan: Plan, rows: Sequence[ReproducedRow], path: Path) -> None:
    """Write the table to `path` (Markdown), its figures to a .json, and the picture to a .png beside it."""
    shown = _other_rows(plan, rows)
    write_text(path, as_markdown(plan, rows, shown))
    content = document(plan, rows, title(plan), differences(plan, rows)) | {
        "published_data": published_data(plan) or None,
        "rows": [_with_deviations(row) for row in rows],
        "published": [{"name": row.name, "figures": row.figures, "deviations": row.deviations} for row in shown],
    }
    write_json(path.with_suffix(".json"), content)
    draw(path.with_suffix(".png"), plan, rows, fastat.published_rows(published_data(plan)), title=title(plan))


def title(plan: Plan) -> str:
    """Return the title of the table."""
    return f"FastAT Benchmark: one-step recipes on {TITLES_OF_DATA.get(plan.data, plan.data)}"


def as_markdown(plan: Plan, rows: Sequence[ReproducedRow], shown: Sequence[PublishedRow]) -> str:
    """Return the table. Our rows come first, then the published ones of other methods, the most robust first."""
    columns = list(HEADS)
    cell = "Accuracies are in %"
    if len(plan.seeds) > 1:
        cell += ", and our figures are means ± standard deviations"
    if published_data(plan):
        cell += (
            ". Where the method of our row was published, the published figure ± its standard deviation follows, and "
            "then the difference. Published rows are from the FastAT Benchmark (Pan and Yao, arXiv 2604.22853, 2026)"
        )
    lines = [
        f"# {title(plan)}",
        "",
        f"Made by {markdown_code(command(plan))}.",
        "",
        f"{cell}.",
        "",
        "| method | recipe | " + " | ".join(HEADS.values()) + " | passes per image |",
        "|---|---|" + "---|" * (len(columns) + 1),
    ]
    for row in rows:
        name = f"**{row.source.name}, ours**" if row.source.figures else "**ours**"
        cells = [_cell(row, column, plan) for column in columns]
        cost = f"{row.passes}F x {row.config.epochs}"
        lines.append(f"| {name} | {markdown_code(row.source.recipe)} | {' | '.join(cells)} | {cost} |")
    for other in shown:
        cells = [_published(other, column) for column in columns]
        lines.append(f"| {other.name} | published | {' | '.join(cells)} | - |")
    lines += ["", "What differs from the protocol:", ""]
    lines += [f"* {markdown(sentence)}" for sentence in differences(plan, rows)]
    lines += [f"* {markdown(why)}." for row in rows for why in row.failed()]
    return "\n".join(lines) + "\n"


def _other_rows(plan: Plan, rows: Sequence[ReproducedRow]) -> list[PublishedRow]:
    """Return the published rows of the methods that are not among ours."""
    ours = {row.source.name for row in rows}
    return [row for row in fastat.published_rows(published_data(plan)) if row.name not in ours]


def _with_deviations(row: ReproducedRow) -> dict[str, Any]:
    """Return the row for the JSON file, with the published standard deviation of each figure that has one."""
    content = row.as_json()
    for name, deviation in row.source.deviations.items():
        content["figures"][name]["published_deviation"] = deviation
    return content


def _cell(row: ReproducedRow, name: str, plan: Plan) -> str:
    mean, known = row.mean(name), row.source.figures.get(name)
    if mean is None:
        skipped = name == "autoattack" and not plan.autoattack
        waiting = "failed" if row.failures else "pending"
        nothing = "not run" if skipped else "-" if row.ours else waiting  # a CPU has no GPU memory
        return nothing if known is None else f"{nothing} / {_published(row.source, name)}"
    ours = f"**{_number(name, mean, row.spread(name))}**"
    if known is None:
        return ours
    if name == "seconds":  # of other hardware
        return f"{ours} / {_published(row.source, name)}"
    difference = round(mean - known, 2) + 0.0  # a sum, since "-0.00" is no difference
    return f"{ours} / {_published(row.source, name)} / {difference:+{_digits(name)}}"


def _published(row: PublishedRow, name: str) -> str:
    return _number(name, row.figures[name], row.deviations[name])


def _number(name: str, value: float, deviation: float | None) -> str:
    digits = _digits(name)
    return f"{value:{digits}}" if deviation is None else f"{value:{digits}} ± {deviation:{digits}}"


def _digits(name: str) -> str:
    return ".0f" if name == "seconds" else ".2f"
