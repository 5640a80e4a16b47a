"""`rmcla recipes`: the table of the training methods."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from rmcla_fast import recipes


def command() -> None:
    """List the training methods with the cost of one update, in forward passes of the network."""
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "passes", "steps x eps", "start x eps", "target", "labels", "logits"):
        table.add_column(column, justify="right" if column == "passes" else "left", no_wrap=True)
    for name in recipes.names():
        recipe = recipes.get(name)
        steps = f"{recipe.steps} x {recipe.step_ratio:.4g}" if recipe.steps else "-"
        start = {"uniform": f"{recipe.start_ratio:g}", "normal": f"{recipe.start_ratio:g} sd", "none": "-"}
        labels = "one-hot" if recipe.label_scheme == "none" else recipe.label_scheme
        labels += f", top {recipe.top_k}" if recipe.top_k else ""
        target = "KL" if recipe.outer_loss == "trades" else recipe.target if recipe.steps else "-"
        reads_logits = recipe.target != "untargeted" or recipe.label_scheme != "none"
        source = recipe.label_source if recipe.steps and reads_logits else "-"
        table.add_row(name, f"{recipe.cost}F", steps, start[recipe.start], target, labels, source)
    Console().print(table)
