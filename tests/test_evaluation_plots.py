"""Tests that pictures and tables of an evaluation are readable: nothing is cut off, wrapped, or overlaps."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rmcla_fast.attacks.suite import AttackResult
from rmcla_fast.evaluation import compare, masking, plots, report

pytest.importorskip("matplotlib", reason="pip install 'rmcla-fast[train]'")
NAMES = [f"preact-resnet18-r-mc-la-plus-seed-{seed}" for seed in range(8)]
ATTACKS = ["clean", "fgsm", "ce20", "ce100", "cw100", "mi", "cw-l2-a", "deepfool-l2", "autoattack"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the figures that are saved."""
    figures: list[Any] = []
    save = plots.save

    def keep(figure: Any, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures


def results(accuracy: float = 88.8) -> dict[str, AttackResult]:
    return {name: AttackResult(accuracy=accuracy, images=60, seconds=1.0) for name in ATTACKS}


def measured(name: str) -> compare.Compared:
    run: Any = SimpleNamespace(data="cifar10")
    surface = (torch.linspace(-0.1, 0.1, 5), torch.rand(5, 5))
    line = [float(value) for value in range(100)]
    return compare.Compared(run, results(), [0.0, 0.1], [9.0, 1.0], line, (line[:20], line[:20]), surface, 1.0, name)


def is_inside(figure: Any, artist: Any) -> bool:
    there = artist.get_window_extent()
    return bool(there.x0 >= 0 and there.x1 <= figure.bbox.x1 and there.y0 >= 0 and there.y1 <= figure.bbox.y1)


def do_not_overlap(boxes: list[Any]) -> bool:
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_eight_runs_with_long_names_fit_in_one_picture(drawn: list[Any], tmp_path: Path) -> None:
    compare.draw([measured(name) for name in NAMES], ATTACKS, 0.1, tmp_path / "c.png")
    (figure,) = drawn
    bars, over = figure.axes
    assert is_inside(figure, figure.legends[0])
    assert is_inside(figure, over.title)
    assert len(bars.texts) == len(NAMES) * len(ATTACKS)
    assert do_not_overlap([text.get_window_extent() for text in bars.texts])


def test_the_details_of_eight_runs_with_long_names_fit_in_one_picture(drawn: list[Any], tmp_path: Path) -> None:
    compare.draw_details([measured(name) for name in NAMES], 0.1, tmp_path / "d.png")
    (figure,) = drawn
    assert is_inside(figure, figure.legends[0])
    titles = [axes.title for axes in figure.subfigs[1].axes]
    assert all(is_inside(figure, title) for title in titles)
    assert do_not_overlap([title.get_window_extent() for title in titles])


@pytest.mark.parametrize("spread", [1e-3, 1.0, 8.0])
def test_a_histogram_has_no_two_equal_tick_labels(drawn: list[Any], tmp_path: Path, spread: float) -> None:
    values = 10 ** (torch.linspace(-spread, 0, 60) - 6)
    plots.gradient_histogram(tmp_path / "g.png", values.double(), {}, title="")
    (figure,) = drawn
    (axes,) = figure.axes
    ticks = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    shown = [tick.get_text() for tick in ticks if tick.get_text()]
    assert len(shown) == len(set(shown))
    assert sum(bar.get_height() for bar in axes.patches) == 60


def test_a_histogram_of_one_gradient_and_one_of_zeros_are_drawn(tmp_path: Path) -> None:
    plots.gradient_histogram(tmp_path / "one.png", torch.tensor([2.0]), {}, title="")
    plots.gradient_histogram(tmp_path / "none.png", torch.zeros(3), {}, title="")


def test_a_table_in_a_file_is_not_cut_off_and_its_title_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    title = "run: preact-resnet18 on folder, r-mc-la-sup+, epsilon 8/255"
    report.show(report.table({"clean": results()["clean"]}, title=title, published={}), "a line")
    report.show(report.comparison_table({name: results() for name in NAMES}, "epsilon 8/255"))
    printed = capsys.readouterr().out
    assert title in printed
    assert "a line\n" in printed
    assert "…" not in printed
    for line, name in zip((line for line in printed.splitlines() if "88.8" in line), ["clean", *NAMES], strict=True):
        assert name in line


def test_how_l2_attacks_count_is_explained_only_if_one_was_run() -> None:
    assert "l2" not in report.explanation(results(), "")
    known = {"cw-l2-a": AttackResult(accuracy=1.0, images=60, seconds=1.0, l2_budget=0.1, accuracy_in_budget=1.0)}
    assert "any distortion" in report.explanation(known, "")


@pytest.mark.parametrize(
    ("clean", "chance", "knows"),
    [(74.0, 50.0, True), (54.0, 50.0, False), (91.0, 90.0, False), (2.0, 1.0, True), (12.0, 10.0, False)],
)
def test_a_model_near_chance_is_not_called_robust(clean: float, chance: float, knows: bool) -> None:
    found = masking.verdict({"clean": clean}, (), 0.0, chance)
    assert found.startswith("no sign") == knows


@pytest.mark.parametrize(("chance", "left", "sign"), [(50.0, 80.0, True), (50.0, 55.0, False), (90.0, 90.0, False)])
def test_accuracy_at_a_large_epsilon_is_compared_with_chance(chance: float, left: float, sign: bool) -> None:
    assert bool(masking.signs({"clean": 99.0}, (), left, chance)) == sign


def test_two_images_fooled_by_fgsm_alone_are_no_sign() -> None:
    found = {"clean": 90.0, "fgsm": 50.0, "ce20": 50.0 + 2 * 100 / 60}
    assert not masking.signs(found, images=60)
    assert masking.signs(found, images=1000)
