"""Tests of the published figures: they are complete and as printed, and are found by recipe and data set."""

from __future__ import annotations

import pytest

from rmcla_fast import recipes
from rmcla_fast.attacks.suite import TITLES
from rmcla_fast.paper import published

PRINTED = {
    ("table1", "R-MC-LA+"): [92.8, 75.6, 61.4, 65.5, 65.4, 88.2, 77.8],
    ("table1", "TRADES"): [84.9, 61.1, 56.4, 58.0, 81.2, 81.6],
    ("table2", "R-MC-LA 5K"): [90.7, 69.6, 55.3, 53.8, 52.8],
    ("table2", "R-MC-LA 2K"): [85.6, 56.1, 42.8, 41.1, 40.2],
    ("table2", "R-MC-LA 0.5K"): [73.3, 33.7, 25.1, 24.5, 24.0],
    ("table3", "R-MC-LA"): [68.7, 30.5, 23.2, 22.7, 20.6],
    ("table3", "R-MC-LA+"): [66.2, 31.3, 23.1, 22.4, 20.0],
    ("table3", "R-MC-LA9"): [68.7, 33.7, 23.1, 22.0, 20.1],
    ("table3", "R-MC-LA9+"): [68.2, 36.9, 26.7, 25.3, 22.1],
    ("table3", "Madry*"): [61.9, 28.8, 23.7, 23.4, 24.5],
    ("table5", "R-MC-LA main"): [90.8, 69.3, 54.6, 52.9, 51.9],
    ("table5", "R-MC-LA+ main"): [91.0, 70.3, 57.5, 55.2, 53.8],
    ("table5", "R-MC-LA sup"): [90.2, 70.9, 53.2, 51.1, 49.9],
    ("table5", "R-MC-LA+ sup"): [91.5, 71.4, 57.2, 54.1, 51.5],
}


def test_the_tables_are_as_printed() -> None:
    held = {
        (key, row.name): list(row.figures.values()) for key, table in published.TABLES.items() for row in table.rows
    }
    assert held == PRINTED


def test_every_row_names_attacks_and_a_recipe_that_exist() -> None:
    rows = [row for table in published.TABLES.values() for row in table.rows]
    for row in (*rows, *published.README, *published.OTHERS):
        assert set(row.figures) <= set(TITLES)
        assert recipes.get(row.recipe)
        assert all(0 < value < 100 for value in row.figures.values())
    for recipe in (*published.gradient_recipes("cifar10"), *published.gradient_recipes("imagenet")):
        assert recipes.get(recipe)


def test_published_accuracies_are_those_of_the_same_data_set() -> None:
    figures, source = published.accuracies_of("r-mc-la9", "cifar100")
    assert figures == {"clean": 68.7, "fgsm": 33.7, "ce20": 23.1, "ce100": 22.0, "cw100": 20.1}
    assert source == "R-MC-LA9, CIFAR-100, trained with 8/255"
    figures, source = published.accuracies_of("r-mc-la+", "cifar10")
    assert figures["ce20"] == 57.5
    assert figures["autoattack"] == 29.35
    assert source.startswith("R-MC-LA+ main, CIFAR-10")
    assert "trained with 4/255" in source


@pytest.mark.parametrize(
    ("recipe", "data"),
    [("r-mc-la+", "digits"), ("r-mc-la+", "folder"), ("n-fgsm", "cifar100"), ("standard", "cifar10")],
)
def test_no_accuracies_are_given_where_none_were_published(recipe: str, data: str) -> None:
    assert published.accuracies_of(recipe, data) == ({}, "")


@pytest.mark.parametrize(
    ("recipe", "data", "expected"),
    [
        ("standard", "svhn", ({"max": 267.9, "mean": 0.77}, "SVHN, undefended")),
        ("r-mc-la+", "cifar10", ({"max": 1.6, "mean": 0.0098}, "CIFAR-10, ours")),
        ("r-mc-la", "svhn", ({"max": 3.4, "mean": 0.022}, "SVHN, ours")),
        ("r-mc-la", "digits", ({}, "")),
        ("madry-pgd7-2", "imagenet", ({"max": 0.004, "mean": 0.000038}, "ImageNet, madry")),
        ("madry-pgd10-3", "imagenet", ({"max": 0.004, "mean": 0.000038}, "ImageNet, madry")),
        ("madry-pgd7-2", "svhn", ({"max": 15.3, "mean": 0.12}, "SVHN, madry")),
        ("fgsm-rs", "cifar10", ({}, "")),
    ],
)
def test_gradients_are_found_by_recipe_and_data_set(
    recipe: str, data: str, expected: tuple[dict[str, float], str]
) -> None:
    assert published.gradients_of(recipe, data) == expected


def test_a_recipe_whose_fields_are_changed_has_no_published_figures() -> None:
    assert published.gradients_of("r-mc-la,start_ratio=3", "svhn") == ({}, "")
    assert published.accuracies_of("r-mc-la,start_ratio=3", "cifar10") == ({}, "")
