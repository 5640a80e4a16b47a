"""The picture of the FastAT table: robust accuracy over seconds of training, ours among the published methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.evaluation import plots
from rmcla_fast.paper.plan import Plan, ReproducedRow
from rmcla_fast.paper.published import PublishedRow

FONT = 7.5
LINE = {"arrowstyle": "-", "color": plots.FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
POINTS = 3  # between a marker and its name
RINGS = 9  # how far a name may be moved away from its marker, in heights of a line
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def draw(
    path: Path, plan: Plan, rows: Sequence[ReproducedRow], published: Sequence[PublishedRow], *, title: str
) -> Path | None:
    """Draw accuracy under AutoAttack (PGD-20 where it was not run) over seconds; None if there is nothing to draw."""
    attack = "autoattack" if plan.autoattack else "ce20"
    measured = [row for row in rows if row.mean(attack) is not None]
    if not measured and not published:
        return None
    figure = plots.new_figure(9.5, 6.0)
    axes = figure.subplots()
    axes.set_xscale("log")
    for number, row in enumerate(measured):
        colour, marker = plots.COLOURS[number % len(plots.COLOURS)], plots.MARKERS[number % len(plots.MARKERS)]
        name = plots.label(f"ours: {row.source.recipe.replace(',', ', ')}", 48)
        place = (row.mean("seconds"), row.mean(attack))
        axes.errorbar(*place, yerr=row.spread(attack), color=colour, zorder=3)
        axes.plot(*place, color=colour, marker=marker, markersize=8, linestyle="none", label=name, zorder=3)
    places = [(row.figures["seconds"], row.figures[attack]) for row in published]
    if places:
        axes.scatter(*zip(*places, strict=True), s=22, color=plots.FAINT, label="published (FastAT Benchmark)")
    name = "PGD-20" if attack == "ce20" else TITLES[attack]
    axes.set(xlabel="seconds of training (the GPU of the published ones is not known)", ylabel=f"accuracy in %, {name}")
    axes.margins(x=0.12, y=0.06)
    plots.set_title(axes, title)
    plots.simplify_frame(axes)
    _plain_ticks(axes)
    plots.legend_above(figure, axes)
    ours = [(row.mean("seconds"), row.mean(attack)) for row in measured]
    _write_names(figure, axes, [row.name for row in published], places, ours)
    return plots.save(figure, path)


def _plain_ticks(axes: Any) -> None:
    """Write seconds as 2,000 and not as a power of ten, and only where there is room."""
    low, high = axes.get_xlim()
    if high / low < 3:  # too few round numbers would be on a logarithmic axis
        axes.set_xscale("linear")
    elif high / low < 50:
        steps = [digit * 10.0**power for power in range(-2, 7) for digit in (1, 1.5, 2, 3, 5, 7)]
        axes.set_xticks([step for step in steps if low <= step <= high])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    axes.minorticks_off()


def _write_names(figure: Any, axes: Any, names: Sequence[str], places: Sequence[Any], ours: Iterable[Any]) -> None:
    """Write each name near its marker, where it covers neither a marker nor another name.

    A name that does not stand right beside its marker gets a thin line to it.
    """
    figure.draw_without_rendering()  # the layout is known only afterwards
    scale = figure.dpi / 72
    markers = [axes.transData.transform(place) for place in (*places, *ours)]
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in markers]
    frame = axes.get_window_extent()
    for text, place, (x, y) in zip(names, places, markers, strict=False):
        width, height = _size(axes, text)
        for ring, (right, up) in ((ring, side) for ring in range(RINGS) for side in SIDES):
            away = (POINTS + 4) * scale + ring * height
            left = x + right * away - (0 if right > 0 else width if right < 0 else width / 2)
            low = y + up * away - (0 if up > 0 else height if up < 0 else height / 2)
            box = (left, low, left + width, low + height)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text,
                    place,
                    ((left - x) / scale, (low - y) / scale),
                    textcoords="offset points",
                    fontsize=FONT,
                    color="#5B5B5B",
                    va="bottom",
                    arrowprops=LINE if ring or (right and up) else None,
                )
                break


def _size(axes: Any, text: str) -> tuple[float, float]:
    """Return width and height of a text in pixels."""
    drawn = axes.text(0, 0, text, fontsize=FONT, transform=None)
    extent = drawn.get_window_extent()
    drawn.remove()
    return extent.width, extent.height


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
