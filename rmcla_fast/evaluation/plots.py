"""The pictures of an evaluation: bars for each attack, curves, and histograms of gradients.

Colour-blind readers can tell the colours apart. A missing value is written as a word and never drawn as 0.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy

from rmcla_fast import pictures
from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.errors import UserError, need
from rmcla_fast.files import replacing
from rmcla_fast.text import printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B", "#8C510A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID = "#E3E3E3"
FAINT = "#8A8A8A"
PURPOSE = "drawing a picture"


def new_figure(width: float, height: float) -> Any:
    """Create a matplotlib figure that can only be saved to a file; raise a UserError if matplotlib is missing."""
    return pictures.new_figure(width, height, PURPOSE, dpi=120)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG file completely or not at all; raise a UserError if the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            figure.savefig(file, facecolor="white", format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def label(text: str, columns: int = 60, rows: int = 4) -> str:
    """Return the text so that matplotlib draws each of its characters, and takes none of them as mathematics.

    A character that the font lacks is drawn as its escape. The text is wrapped after `columns` characters, and the
    middle of what needs more than `rows` lines is left out.
    """
    glyphs = _glyphs(tuple(pictures.import_matplotlib(PURPOSE).rcParams["font.family"]))
    shown = printable(text, lambda character: character.isprintable() and ord(character) in glyphs)
    room = columns * rows - 3
    if len(shown) > room:
        shown = f"{shown[: room // 2]}...{shown[-(room - room // 2) :]}"
    wrapped = textwrap.fill(shown, columns).replace("$", r"\$")
    return f" {wrapped}" if wrapped.startswith("_") else wrapped  # matplotlib leaves "_..." out of a legend


@lru_cache(maxsize=1)
def _glyphs(families: tuple[str, ...]) -> frozenset[int]:
    """Return the code points that these fonts can draw."""
    pictures.import_matplotlib(PURPOSE)
    fonts = need("matplotlib.font_manager", "train", PURPOSE)
    paths = [fonts.findfont(fonts.FontProperties(family=[family])) for family in families]
    return frozenset(code for path in paths for code in fonts.get_font(path).get_charmap())


def set_title(axes: Any, title: str) -> None:
    """Write a title above the only axes of a figure; it may be as wide as they are."""
    figure = axes.figure
    axes.set_title(label(title, int(10.5 * figure.get_figwidth()) - 8), loc="left", fontsize=11)


def simplify_frame(axes: Any) -> None:
    """Remove the top and right edges of the frame, and draw a light grid behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def accuracy_bars(axes: Any, series: Mapping[str, Mapping[str, float | str]], attacks: Sequence[str]) -> None:
    """Draw one group of bars for each attack, with one colour for each series.

    A value that is a word, such as "not run", is written in place of its bar.
    """
    width = 0.84 / max(1, len(series))
    size = 8 if width > 0.16 else 6
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.bar([0], [0], color=colour, label=label(name))
        for position, attack in enumerate(attacks):
            value = values.get(attack, "")
            at = position + (number - (len(series) - 1) / 2) * width
            if isinstance(value, str):
                axes.text(at, 1.5, value, ha="center", va="bottom", rotation=90, fontsize=size, color=FAINT)
            else:
                bar = axes.bar(at, value, width * 0.92, color=colour)
                axes.bar_label(bar, fmt="%.1f" if width > 0.3 else "%.0f", fontsize=size, padding=1)
    axes.set_xticks(range(len(attacks)), [TITLES[name] for name in attacks])
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="accuracy (%)", xlim=(-0.55, len(attacks) - 0.45), ylim=(0, 107), yticks=range(0, 101, 20))
    simplify_frame(axes)


def legend_above(figure: Any, axes: Any) -> None:
    """Draw one legend above the whole figure, in as many columns as fit its width; a high one makes the figure higher.

    The figures have room for a legend of one inch.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        width = figure.bbox.width / figure.dpi  # inches; a character takes 0.085 inches
        longest = max(len(line) for text in labels for line in text.split("\n"))
        columns = max(1, int(width / (0.085 * longest + 0.65)))
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=min(columns, len(labels)), frameon=False
        )
        height = legend.get_window_extent().height / figure.dpi
        figure.set_figheight(figure.get_figheight() + max(0.0, height - 1))


def lines(axes: Any, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], **labels: Any) -> None:
    """Draw one line with markers for each series of accuracies in %."""
    for number, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            x,
            y,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            linewidth=1.6,
            label=label(name),
        )
    axes.set(ylim=(0, 104), yticks=range(0, 101, 20), **labels)
    simplify_frame(axes)


def evaluation(
    path: Path, accuracies: Mapping[str, float], published: Mapping[str, float], *, title: str, source: str
) -> Path:
    """Draw the accuracy of one run under each attack, and next to it the published accuracy if there is one."""
    attacks = [name for name in TITLES if name in accuracies or name == "autoattack"]
    series: dict[str, Mapping[str, float | str]] = {"this run": {"autoattack": "not run", **accuracies}}
    if published:
        series[f"published: {source.split(';')[0]}"] = dict(published)
    figure = new_figure(max(6.0, 0.95 * len(attacks) + 1.4), 3.7)
    axes = figure.subplots()
    accuracy_bars(axes, series, attacks)
    set_title(axes, title)
    legend_above(figure, axes)
    return save(figure, path)


def gradient_histogram(path: Path, values: Any, published: Mapping[str, float], *, title: str) -> Path:
    """Draw a histogram of the squared input gradients (N,) on a log scale, and mark their mean and maximum."""
    figure = new_figure(6.6, 3.7)
    axes = figure.subplots()
    numbers = values[values > 0].double()
    if len(numbers):
        lowest, highest = numbers.min().item(), max(numbers.max().item(), 1.01 * numbers.min().item())
        axes.set_xscale("log")
        axes.hist(numbers.numpy(), bins=numpy.geomspace(lowest, highest, 41).tolist(), color=COLOURS[0])
        for name, value in (("mean", values.mean().item()), ("max", values.max().item())):
            _draw_marker(axes, value, f"{name} {value:.2g}", "black", 0.97)
        for name, value in published.items():
            _draw_marker(axes, value, f"published {name} {value:.2g}", COLOURS[1], 0.55)
    axes.set(xlabel=r"squared l2 norm of the input gradient, paper scale ($\|g\|^2 / 510$)", ylabel="test images")
    set_title(axes, title)
    simplify_frame(axes)
    none = int((values <= 0).sum())
    if none:
        axes.text(0.01, 0.97, f"{none} images have gradient 0", transform=axes.transAxes, va="top", fontsize=8)
    return save(figure, path)


def _draw_marker(axes: Any, value: float, text: str, colour: str, height: float) -> None:
    if value <= 0:
        return
    axes.axvline(value, color=colour, linewidth=1, linestyle="--")
    axes.text(
        value,
        height,
        f" {text} ",
        transform=axes.get_xaxis_transform(),
        rotation=90,
        va="top",
        ha="right",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
    ).set_color(colour)
