"""The results of an evaluation as JSON, as a table, and as the sentences under the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table

from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.attacks.gradient_norm import GradientNorm
from rmcla_fast.attacks.parts import SEVERAL
from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.files import replacing
from rmcla_fast.text import new_console, printable, say

NOT_RUN = "not run"


def as_json(results: Mapping[str, AttackResult], *, epsilon: float, model: str, data: str) -> dict[str, Any]:
    """Return the document that `rmcla evaluate --json` writes: epsilon, attacks, model and data."""
    return {
        "epsilon": format_epsilon(epsilon),
        "attacks": {name: result.as_json() for name, result in results.items()},
        "model": model,
        "data": data,
    }


def setting(epsilon: float, precision: str = "fp32") -> str:
    """Return the end of a title: "epsilon 8/255", followed by the precision if it is not fp32."""
    return f"epsilon {format_epsilon(epsilon)}" + ("" if precision == "fp32" else f", {precision}")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file completely or not at all; raise a UserError if the path cannot be written."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all; raise a UserError if the path cannot be written."""
    write_file(path, text.encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all; raise a UserError if the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def table(results: Mapping[str, AttackResult], *, title: str, published: Mapping[str, float]) -> Table:
    """Return a table with one row for each attack, and a column of published accuracies if there are any.

    AutoAttack always has a row. It says "not run" if AutoAttack was not run.
    """
    shown = _titled(title)
    shown.add_column("attack")
    shown.add_column("accuracy %", justify="right", style="bold")
    if published:
        shown.add_column("published %", justify="right")
    shown.add_column("seconds", justify="right")
    shown.add_column("remarks")
    for name in [name for name in TITLES if name in results or name == "autoattack"]:
        result = results.get(name)
        cells = [TITLES[name], NOT_RUN if result is None else f"{result.accuracy:.1f} ± {result.standard_error:.1f}"]
        if published:
            cells.append(f"{published[name]:.1f}" if name in published else "")
        cells += ["" if result is None else f"{result.seconds:.1f}", "" if result is None else remarks(result)]
        shown.add_row(*cells, style="dim" if result is None else "")
    return shown


def show(shown: Table, *lines: str) -> None:
    """Print a table and the lines under it. The table is fitted to a terminal's width, but not cut off in a file."""
    console = new_console()
    if not console.is_terminal:
        console.width = max(console.width, console.measure(shown, options=console.options.update(width=1000)).maximum)
    console.print(shown)
    for line in lines:
        say(console, line)


def _titled(title: str) -> Table:
    """Return an empty table that is at least as wide as its title, so that the title stays on one line."""
    title = printable(title)
    return Table(title=title, title_justify="left", title_style="bold", min_width=cell_len(title), box=SIMPLE_HEAD)


def remarks(result: AttackResult) -> str:
    """Return the precision, restarts, parts and distortions of a result in a few words."""
    words = [] if result.precision == "fp32" else [result.precision]
    if len(result.parts) > 1:
        words.append("fooled: " + ", ".join(f"{part.part} {part.fooled}" for part in result.parts))
    if result.restarts is not None and result.restarts > 1:
        words.append(f"{result.restarts} restarts")
    if result.accuracy_in_budget is not None:
        words.append(f"{result.accuracy_in_budget:.1f} within l2 {result.l2_budget:.3f}")
        if result.distortion_median is not None:
            words.append(f"distortion median {result.distortion_median:.3f}, mean {result.distortion_mean:.3f}")
    return "; ".join(words)


def explanation(results: Mapping[str, AttackResult], source: str) -> str:
    """Return the lines under the table, which say what its figures mean.

    `source` names the models that the published accuracies were measured on; "" if there are none.
    """
    first = next(iter(results.values()))
    lines = [f"Accuracy on {first.images} test images, ± one standard error."]
    rounded = [TITLES[name] for name in results if name not in SEVERAL]
    if first.precision != "fp32" and rounded:
        lines.append(
            f"The network computed in {first.precision} under {', '.join(rounded)}; "
            "the accuracy to publish is that in fp32."
        )
    if any(result.l2_budget is not None for result in results.values()):
        lines[0] += " An l2 attack succeeds at any distortion, as in the paper."
    if source:
        lines.append(f"The published accuracies are those of {source}.")
    if "autoattack" not in results:
        lines.append("Robust accuracy may be overstated without AutoAttack; add it with --attacks ...,autoattack.")
    lines += dict.fromkeys(note for result in results.values() for note in result.notes)
    return "\n".join(lines)


def comparison_table(runs: Mapping[str, Mapping[str, AttackResult]], title: str) -> Table:
    """Return a table with one row for each run and one column for each attack, always including AutoAttack."""
    known = {name for results in runs.values() for name in results} | {"autoattack"}
    names = [name for name in TITLES if name in known]
    shown = _titled(title)
    shown.padding = (0, 0, 0, 0)  # eleven attacks leave little room for the names
    shown.add_column("accuracy %", overflow="fold")
    for name in names:
        shown.add_column(TITLES[name], justify="right", overflow="fold")
    for run, results in runs.items():
        shown.add_row(
            printable(run), *(f"{results[name].accuracy:.1f}" if name in results else NOT_RUN for name in names)
        )
    return shown


def gradient_table(found: GradientNorm, title: str, published: Mapping[str, float], whose: str) -> Table:
    """Return a table of the maximum and mean squared input gradient in both scales, and as published if known."""
    summary = found.summary()
    shown = _titled(f"{title}, {summary['images']} images")
    shown.add_column("squared l2 norm")
    shown.add_column("paper scale", justify="right", style="bold")
    if published:
        shown.add_column(f"published\n({whose})", justify="right")
    shown.add_column("strict scale, [0, 255]", justify="right")
    for name in ("max", "mean"):
        cells = [_three_digits(summary["paper_scale"][name])]
        if published:
            cells.append(_three_digits(published[name]))
        shown.add_row(name, *cells, _three_digits(summary["strict_scale"][name]))
    return shown


def _three_digits(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
