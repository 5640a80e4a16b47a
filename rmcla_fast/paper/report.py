"""The results of `rmcla reproduce` as Markdown and JSON: the table, its cost, and what differs from the paper."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.attacks.gradient_norm import WHY_TWO_SCALES
from rmcla_fast.attacks.suite import BATCH_SIZE, TITLES
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.evaluation.run import load_data
from rmcla_fast.paper import published
from rmcla_fast.paper.plan import GRADIENT_TABLE, RECIPES_TABLE, Plan, ReproducedRow, attack_epsilon, default_data
from rmcla_fast.paper.published import PAPER_EPOCHS, PAPER_NETWORK
from rmcla_fast.text import markdown, markdown_code, shell_word


def differences(plan: Plan, rows: Sequence[ReproducedRow]) -> list[str]:
    """Return a sentence for everything that differs from the paper."""
    config = rows[0].config
    found = []
    paper_data = rows[0].source.data if plan.table in published.TABLES else default_data(plan.table)
    if plan.table != RECIPES_TABLE and plan.data != paper_data:
        found.append(
            f"Data: {plan.data}, while the paper has {published.DATA_TITLES[paper_data]}. The published figures are"
            " only a rough guide, and the differences do not say how well a figure was reproduced."
        )
    elif plan.table == RECIPES_TABLE and plan.data not in published.DATA_TITLES:
        found.append(f"Data: {plan.data}, for which nothing was published.")
    if config.model != PAPER_NETWORK:
        found.append(f"Network: {config.model}, while the paper trains {PAPER_NETWORK.upper()}.")
    if config.epochs != PAPER_EPOCHS:
        found.append(f"Epochs: {config.epochs}, while the paper trains for {PAPER_EPOCHS}.")
    if config.schedule != "piecewise":
        found.append(
            f"Learning rate: {config.schedule}, while the paper divides it by 10 at half and at three quarters."
        )
    attacked = format_epsilon(attack_epsilon(plan))
    if plan.table != GRADIENT_TABLE and attacked != "8/255":
        trained = sorted({format_epsilon(row.config.epsilon) for row in rows})
        found.append(f"Epsilon: trained with {' and '.join(trained)}, attacked with {attacked} (8/255 in the paper).")
    shares = {row.config.images_per_class for row in rows if row.config.images_per_class}
    if shares and plan.data != "cifar10":
        counts = " and ".join(map(str, sorted(shares, reverse=True)))
        found.append(f"Images per class: all, and {counts}, which are the same fractions as in the paper.")
    if any(recipes.get(row.source.recipe).top_k for row in rows) and _classes(plan) <= 10:
        found.append(f"Top 9 of {_classes(plan)} classes keeps every class, so these rows repeat the rows without it.")
    found.append(f"Seeds: {', '.join(map(str, plan.seeds))}; the paper does not say which seeds it used.")
    if plan.table != GRADIENT_TABLE:
        found.append("An image counts as misclassified if any iterate of the attack fools the model.")
    if not plan.autoattack and plan.table != GRADIENT_TABLE:
        found.append("AutoAttack was not run, so robust accuracies may be overstated.")
    return found


# Large data sets need not be loaded to know their number of classes.
_CLASSES = {"cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000}


def _classes(plan: Plan) -> int:
    return _CLASSES.get(plan.data) or load_data(plan.data, plan.data_dir).num_classes


def title(plan: Plan) -> str:
    if plan.table == RECIPES_TABLE:
        return f"The recipes under every attack, {plan.data}"
    if plan.table == GRADIENT_TABLE:
        return "Table 4: squared l2 norm of the input gradient over the test set, in the paper's scale"
    return published.TABLES[plan.table].title


def command(plan: Plan) -> str:
    """Return the command line that makes this table, with a placeholder for the path of the data set."""
    words = ["rmcla", "reproduce", plan.table, "--data", plan.data]
    options = {
        "--data-dir": None if plan.data_dir is None else f"PATH_TO_{plan.data.upper()}",
        "--model": plan.model,
        "--epochs": plan.epochs,
        "--precision": plan.precision,
        "--device": plan.device,
        "--batch-size": None if plan.batch_size == BATCH_SIZE else plan.batch_size,
    }
    for flag, value in options.items():
        words += [flag, str(value)] if value is not None else []
    words += ["--seeds", ",".join(map(str, plan.seeds))]
    words += [] if plan.autoattack or plan.table == GRADIENT_TABLE else ["--no-autoattack"]
    return " ".join(map(shell_word, words))


def as_json(plan: Plan, rows: Sequence[ReproducedRow]) -> dict[str, Any]:
    return document(plan, rows, title(plan), differences(plan, rows))


def document(plan: Plan, rows: Sequence[ReproducedRow], heading: str, found: list[str]) -> dict[str, Any]:
    """Return the content of the JSON file of a table with this title and these differences."""
    return {
        "table": plan.table,
        "title": heading,
        "command": command(plan),
        "data": plan.data,
        "model": rows[0].config.model,
        "epsilon": format_epsilon(attack_epsilon(plan)),
        "seeds": list(plan.seeds),
        "differences": found,
        "rows": [row.as_json() for row in rows],
    }


def as_markdown(plan: Plan, rows: Sequence[ReproducedRow], attacks: Sequence[str]) -> str:
    """Return the table. Each cell has our figure, the published one and the difference.

    With several seeds, our figure is the mean and the standard deviation.
    """
    gradient = plan.table == GRADIENT_TABLE
    columns = ["max", "mean"] if gradient else [name for name in TITLES if name in attacks or name == "autoattack"]
    heads = columns if gradient else [TITLES[name] for name in columns]
    lines = [f"# {title(plan)}", "", f"Made by {markdown_code(command(plan))}.", ""]
    lines += [
        f"Each cell: ours{' (mean ± standard deviation)' if len(plan.seeds) > 1 else ''} / published / difference.",
        "",
    ]
    lines += ["| model | recipe | " + " | ".join(heads) + " | passes per image | training minutes |"]
    lines += ["|---|---|" + "---|" * (len(heads) + 2)]
    for row in rows:
        cells = [_cell(row, name, gradient, plan) for name in columns]
        minutes = f"{statistics.fmean(row.minutes):.2f}" if row.minutes else "-"
        cost = f"{row.passes}F x {row.config.epochs}"
        lines.append(f"| {row.source.name} | `{row.source.recipe}` | " + " | ".join(cells) + f" | {cost} | {minutes} |")
    lines += ["", "What differs from the paper:", ""]
    lines += [f"* {markdown(sentence)}" for sentence in differences(plan, rows)]
    lines += [f"* {markdown(why)}." for row in rows for why in row.failed()]
    notes = [f"* {row.source.name}: {row.source.note}." for row in rows if row.source.note]
    if gradient:
        notes.append("* " + WHY_TWO_SCALES)
        for row in rows:
            if row.strict:
                strict = ", ".join(f"{name} {statistics.fmean(values):.3g}" for name, values in row.strict.items())
                notes.append(f"* {row.source.name}, strict scale: {strict}.")
    return "\n".join([*lines, *notes]) + "\n"


def _cell(row: ReproducedRow, name: str, gradient: bool, plan: Plan) -> str:
    mean, known = row.mean(name), row.source.figures.get(name)
    if mean is None:
        if name == "autoattack" and not plan.autoattack:
            return "not run" + (f" / {known:.1f}" if known is not None else "")
        nothing = "failed" if row.failures else "pending"
        return f"{nothing} / {known:g}" if known is not None else nothing
    ours = f"{mean:.3g}" if gradient else f"{mean:.1f}"
    spread = row.spread(name)
    if spread is not None:
        ours += f" ± {spread:.2g}" if gradient else f" ± {spread:.1f}"
    if known is None:
        return f"**{ours}**"
    difference = mean - known
    return (
        f"**{ours}** / {known:g} / {difference:+.3g}" if gradient else f"**{ours}** / {known:.1f} / {difference:+.1f}"
    )
