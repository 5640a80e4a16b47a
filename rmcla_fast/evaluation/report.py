"""What an evaluation says: the JSON, the table with the published figures beside, and the plain words under it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rmcla_fast.attacks.gradient_norm import GradientNorm
from rmcla_fast.attacks.suite import TITLES, AttackResult
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.files import replacing

NOT_RUN = "not run"


def as_json(
    results: Mapping[str, AttackResult], *, epsilon: float, model: str, data: str, **about: Any
) -> dict[str, Any]:
    """The document of `rmcla evaluate --json`: epsilon, attacks, model, data, and what else is known."""
    return {
        "epsilon": format_epsilon(epsilon),
        "attacks": {name: result.as_json() for name, result in results.items()},
        "model": model,
        "data": data,
        **about,
    }


def setting(epsilon: float, precision: str = "fp32") -> str:
    """ "epsilon 8/255", and the precision where it is not the usual one: the end of a title."""
    return f"epsilon {format_epsilon(epsilon)}" + ("" if precision == "fp32" else f", {precision}")


def write_json(path: Path, document: Any) -> None:
    """Writes the document whole or not at all; UserError where the path cannot be written."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the text whole or not at all; UserError where the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def table(results: Mapping[str, AttackResult], *, title: str, published: Mapping[str, float], source: str) -> Table:
    """One row an attack; AutoAttack's row is there even where it was not asked for, and says so."""
    shown = _titled(title)
    shown.add_column("attack")
    shown.add_column("accuracy %", justify="right", style="bold")
    if published:
        shown.add_column(f"published %\n({source.split(', ')[1]})", justify="right")
    shown.add_column("seconds", justify="right")
    shown.add_column("remarks")
    for name in [name for name in TITLES if name in results or name == "autoattack"]:
        result = results.get(name)
        cells = [TITLES[name], NOT_RUN if result is None else f"{result.accuracy:.1f}"]
        if published:
            cells.append(f"{published[name]:.1f}" if name in published else "")
        cells += ["" if result is None else f"{result.seconds:.1f}", "" if result is None else remarks(result)]
        shown.add_row(*cells, style="dim" if result is None else "")
    return shown


def show(shown: Table, *lines: str) -> None:
    """Prints a table and lines under it; a file gets the table as wide as it is, only a terminal has an edge."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, console.measure(shown, options=console.options.update(width=1000)).maximum)
    console.print(shown)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _titled(title: str) -> Table:
    """A table under one line, as wide as that line at the least, which would be broken otherwise."""
    return Table(title=title, title_justify="left", title_style="bold", min_width=len(title), box=SIMPLE_HEAD)


def remarks(result: AttackResult) -> str:
    """Precision, restarts and distortions in a few words."""
    words = [] if result.precision == "fp32" else [result.precision]
    if result.restarts is not None and result.restarts > 1:
        words.append(f"{result.restarts} restarts")
    if result.accuracy_in_budget is not None:
        words.append(f"{result.accuracy_in_budget:.1f} within l2 {result.l2_budget:.3f}")
        if result.distortion_median is not None:
            words.append(f"distortion median {result.distortion_median:.3f}, mean {result.distortion_mean:.3f}")
    return "; ".join(words)


def explanation(results: Mapping[str, AttackResult], published: Mapping[str, float], source: str) -> str:
    """What a reader must know to read the figures rightly."""
    first = next(iter(results.values()))
    lines = [f"Accuracy on {first.images} test images."]
    if first.precision != "fp32":
        lines.append(f"The network computed in {first.precision}; the accuracy to publish is that in fp32.")
    if any(result.l2_budget is not None for result in results.values()):
        lines[0] += " l2 attacks count success at any distortion, as the paper does."
    if published:
        lines.append(f"Published: {source}.")
    if "autoattack" not in results:
        lines.append("Without AutoAttack a robust accuracy may be overstated; add it with --attacks ...,autoattack.")
    lines += dict.fromkeys(note for result in results.values() for note in result.notes)
    return "\n".join(lines)


def comparison_table(runs: Mapping[str, Mapping[str, AttackResult]], title: str) -> Table:
    """One row a run, one column an attack; AutoAttack's column is always there."""
    known = {name for results in runs.values() for name in results} | {"autoattack"}
    names = [name for name in TITLES if name in known]
    shown = _titled(title)
    shown.padding = (0, 0, 0, 0)  # eleven attacks leave little room for the names
    shown.add_column("accuracy %", overflow="fold")
    for name in names:
        shown.add_column(TITLES[name], justify="right", overflow="fold")
    for run, results in runs.items():
        shown.add_row(run, *(f"{results[name].accuracy:.1f}" if name in results else NOT_RUN for name in names))
    return shown


def gradient_table(found: GradientNorm, title: str, published: Mapping[str, float], whose: str) -> Table:
    """Max and mean of the squared input gradient, in both scales, with the published figures beside."""
    summary = found.summary()
    shown = _titled(f"{title}, {summary['images']} images")
    shown.add_column("squared l2 norm")
    shown.add_column("paper scale", justify="right", style="bold")
    if published:
        shown.add_column(f"published\n({whose})", justify="right")
    shown.add_column("strict scale, [0, 255]", justify="right")
    for name in ("max", "mean"):
        cells = [_short(summary["paper_scale"][name])]
        if published:
            cells.append(_short(published[name]))
        shown.add_row(name, *cells, _short(summary["strict_scale"][name]))
    return shown


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
