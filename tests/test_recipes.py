"""The recipes: their names, their costs, their values, and the errors for bad values."""

from __future__ import annotations

import dataclasses
import math

import pytest

import rmcla_fast
from rmcla_fast import Recipe, recipes

WITH_LABELS = ("r-mc-la", "r-mc-la9", "r-mc-la-sup", "r-mosa-la", "r-mix-la")
NAMES = [
    *("standard", "madry-pgd7-2", "madry-pgd10-3", "trades", "r-fgsm", "r-ll", "r-rand", "r-mc"),
    *(name + source for name in WITH_LABELS for source in ("", "+")),
    *("fgsm-rs", "n-fgsm", "n-mc-la", "n-fgsm-la", "n-margin"),
]
COSTS = {"standard": 3, "madry-pgd7-2": 17, "madry-pgd10-3": 23, "trades": 27}


def test_every_recipe_is_listed() -> None:
    assert list(recipes.names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_cost_in_forward_passes(name: str) -> None:
    assert recipes.get(name).cost == COSTS.get(name, 6 if name.endswith("+") else 5)
    assert recipes.get(name).name == name


def test_recipes_have_the_values_of_their_papers() -> None:
    recipe = recipes.get("r-mc-la9+")
    assert (recipe.epsilon, recipe.step_ratio, recipe.steps, recipe.start) == (8 / 255, 1.0, 1, "uniform")
    assert (recipe.beta, recipe.gamma, recipe.top_k, recipe.label_scheme) == (9.0, 0.01, 9, "main")
    assert (recipe.label_source, recipe.attack_mode, recipe.project) == ("clean", "eval", True)
    pgd, imagenet = recipes.get("madry-pgd7-2"), recipes.get("madry-pgd10-3")
    assert math.isclose(pgd.epsilon * pgd.step_ratio, 2 / 255)
    assert math.isclose(imagenet.epsilon * imagenet.step_ratio, 3 / 255)
    assert math.isclose(imagenet.epsilon, 16 / 255)
    noisy = recipes.get("n-fgsm")
    assert (noisy.start_ratio, noisy.step_ratio, noisy.project) == (2.0, 1.0, False)
    assert recipes.get("fgsm-rs").step_ratio == 1.25
    trades = recipes.get("trades")
    assert (trades.outer_loss, trades.trades_weight, trades.start, trades.start_ratio) == (
        "trades",
        6.0,
        "normal",
        0.001,
    )
    assert {name: recipes.get(name).label_scheme for name in ("r-mc", "r-mc-la-sup", "n-margin", "n-fgsm-la")} == {
        "r-mc": "none",
        "r-mc-la-sup": "sup",
        "n-margin": "none",
        "n-fgsm-la": "main",
    }


def test_replace_checks_the_values_and_does_not_change_the_original() -> None:
    changed = recipes.get("r-mc-la9+").replace(epsilon=4 / 255, beta=11.0)
    assert (changed.epsilon, changed.beta, changed.top_k) == (4 / 255, 11.0, 9)
    assert recipes.get("r-mc-la9+").epsilon == 8 / 255
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.epsilon = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="no field 'radius'"):
        changed.replace(radius=1.0)
    assert recipes.get("r-mc-la").replace(label_source="clean") == recipes.get("r-mc-la+")
    assert rmcla_fast.Recipe().name == "custom"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": -0.1}, "epsilon must be finite and not negative; got -0.1"),
        ({"epsilon": math.nan}, "epsilon must be finite"),
        ({"epsilon": 0.0}, "epsilon must be positive if steps is not 0; got 0"),
        ({"epsilon": "8/255"}, "epsilon must be a number; got str"),
        ({"step_ratio": math.inf}, "step_ratio must be finite"),
        ({"steps": -1}, "steps must be at least 0; got -1"),
        ({"steps": 1.0}, "steps must be an int; got float"),
        ({"steps": 0, "label_scheme": "main"}, "steps must be at least 1"),
        ({"beta": 0.0}, "beta must be positive; got 0.0"),
        ({"gamma": -1.0}, "gamma must be positive; got -1.0"),
        ({"top_k": 0}, "top_k must be at least 1; got 0"),
        ({"top_k": True}, "top_k must be an int; got bool"),
        ({"project": 1}, "project must be a bool; got int"),
        ({"start": "gauss"}, "start must be one of 'uniform', 'normal', 'none'; got 'gauss'"),
        ({"target": "nearest"}, "target must be one of"),
        ({"label_scheme": "soft"}, "label_scheme must be one of"),
        ({"label_source": "both"}, "label_source must be one of"),
        ({"outer_loss": "mart"}, "outer_loss must be one of"),
        ({"attack_mode": "test"}, "attack_mode must be one of"),
        ({"outer_loss": "trades"}, "outer_loss 'trades' attacks its own KL term"),
        ({"name": ""}, "name must be a non-empty str"),
    ],
)
def test_a_bad_value_is_an_error_of_one_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        Recipe(**changes)  # type: ignore[arg-type]
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_an_error_with_similar_names() -> None:
    with pytest.raises(ValueError, match=r"no recipe is called 'rmcla'; did you mean 'r-mc-la'.* there are standard, "):
        recipes.get("rmcla")
