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
NOISY = {"start_ratio": 2.0, "project": False}
# What each recipe changes in the fields of `Recipe()`, beside its name.
CHANGES: dict[str, dict[str, object]] = {
    "standard": {"steps": 0, "start": "none", "target": "untargeted"},
    "madry-pgd7-2": {"steps": 7, "step_ratio": 1 / 4, "target": "untargeted"},
    "madry-pgd10-3": {"steps": 10, "step_ratio": 3 / 16, "epsilon": 16 / 255, "target": "untargeted"},
    "trades": {
        **{"steps": 10, "step_ratio": 1 / 4, "target": "untargeted", "outer_loss": "trades"},
        **{"start": "normal", "start_ratio": 0.001},
    },
    "r-fgsm": {"target": "untargeted"},
    "r-ll": {"target": "ll"},
    "r-rand": {"target": "random"},
    "r-mc": {},
    "r-mc-la": {"label_scheme": "main"},
    "r-mc-la9": {"label_scheme": "main", "top_k": 9},
    "r-mc-la-sup": {"label_scheme": "sup"},
    "r-mosa-la": {"label_scheme": "main", "target": "mosa"},
    "r-mix-la": {"label_scheme": "main", "target": "mix"},
    "fgsm-rs": {"target": "untargeted", "step_ratio": 1.25},
    "n-fgsm": {**NOISY, "target": "untargeted"},
    "n-mc-la": {**NOISY, "label_scheme": "main"},
    "n-fgsm-la": {**NOISY, "target": "untargeted", "label_scheme": "main"},
    "n-margin": {**NOISY, "target": "margin"},
}
COSTS = {"standard": 3, "madry-pgd7-2": 17, "madry-pgd10-3": 23, "trades": 27}


def test_every_recipe_is_listed() -> None:
    assert list(recipes.names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_cost_in_forward_passes(name: str) -> None:
    assert recipes.get(name).cost == COSTS.get(name, 6 if name.endswith("+") else 5)
    assert recipes.get(name).name == name


def test_the_fields_have_the_defaults_of_r_mc() -> None:
    assert dataclasses.asdict(Recipe()) == {
        **{"epsilon": 8 / 255, "step_ratio": 1.0, "steps": 1, "start": "uniform", "start_ratio": 1.0, "project": True},
        **{"target": "mc", "label_scheme": "none", "beta": 9.0, "gamma": 0.01, "top_k": None, "label_source": "start"},
        **{"outer_loss": "soft_ce", "trades_weight": 6.0, "attack_mode": "eval", "name": "custom"},
        "label_smoothing": 0.0,
    }


@pytest.mark.parametrize("name", NAMES)
def test_recipes_have_the_values_of_their_papers(name: str) -> None:
    source = {"label_source": "clean"} if name.endswith("+") else {}
    expected = {**dataclasses.asdict(Recipe()), **CHANGES[name.removesuffix("+")], **source, "name": name}
    assert dataclasses.asdict(recipes.get(name)) == expected


def test_replace_keeps_the_name_which_comparisons_ignore() -> None:
    assert recipes.get("r-fgsm").replace(steps=2).name == "r-fgsm"
    assert Recipe(name="mine") == Recipe()
    assert Recipe(beta=2) != Recipe()


def test_every_choice_of_a_field_is_allowed() -> None:
    choices = {
        "start": ("uniform", "normal", "none"),
        "target": ("mc", "ll", "random", "mosa", "mix", "untargeted", "margin"),
        "label_scheme": ("main", "sup", "none"),
        "label_source": ("start", "clean"),
        "attack_mode": ("eval", "train"),
    }
    for field, values in choices.items():
        for value in values:
            assert getattr(Recipe(**{field: value}), field) == value  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{field} must be one of {', '.join(map(repr, values))}; got 'other'"):
            Recipe(**{field: "other"})  # type: ignore[arg-type]
    assert Recipe(outer_loss="trades", target="untargeted").cost == 9
    with pytest.raises(ValueError, match="outer_loss must be one of 'soft_ce', 'trades'; got 'other'"):
        Recipe(outer_loss="other")


def test_values_at_the_bounds_are_allowed() -> None:
    assert Recipe(steps=0, epsilon=0.0, target="untargeted").cost == 3
    assert Recipe(step_ratio=0.0, start_ratio=0, trades_weight=0.0, top_k=1, beta=1, gamma=1).top_k == 1
    assert Recipe(steps=0, label_source="clean").clean_forward is False
    assert Recipe(steps=1, label_source="clean").clean_forward is True


def test_replace_checks_the_values_and_does_not_change_the_original() -> None:
    changed = recipes.get("r-mc-la9+").replace(epsilon=4 / 255, beta=11.0)
    assert (changed.epsilon, changed.beta, changed.top_k) == (4 / 255, 11.0, 9)
    assert recipes.get("r-mc-la9+").epsilon == 8 / 255
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.epsilon = 1.0  # type: ignore[misc]
    fields = ", ".join(dataclasses.asdict(changed))
    with pytest.raises(TypeError, match=f"^a recipe has no field 'radius'; its fields are {fields}$"):
        changed.replace(zoom=0, radius=1.0)
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
        ({"steps": True}, "steps must be an int; got bool"),
        ({"epsilon": True}, "epsilon must be a number; got bool"),
        ({"epsilon": math.inf}, "epsilon must be finite and not negative; got inf"),
        ({"start_ratio": -1.0}, "start_ratio must be finite and not negative; got -1.0"),
        ({"trades_weight": "6"}, "trades_weight must be a number; got str"),
        ({"beta": math.nan}, "beta must be finite; got nan"),
        ({"gamma": -math.inf}, "gamma must be finite; got -inf"),
        ({"steps": 0, "label_scheme": "main"}, "steps must be at least 1"),
        (
            {"steps": 0, "outer_loss": "trades", "target": "untargeted"},
            "steps must be at least 1 if labels are redistributed or outer_loss is 'trades'; got 0",
        ),
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
        (
            {"outer_loss": "trades"},
            "outer_loss 'trades' attacks its own KL term: it needs target 'untargeted' and label_scheme 'none'; "
            "got 'mc' and 'none'",
        ),
        (
            {"outer_loss": "trades", "target": "untargeted", "label_scheme": "sup"},
            "outer_loss 'trades' attacks its own KL term: it needs target 'untargeted' and label_scheme 'none'; "
            "got 'untargeted' and 'sup'",
        ),
        ({"start_ratio": 10**400}, "start_ratio must be finite and not negative; got inf"),
        ({"beta": 10**400}, "beta must be finite; got inf"),
        ({"name": ""}, "name must be a non-empty str; got ''"),
        ({"name": 1}, "name must be a non-empty str; got 1"),
    ],
)
def test_a_bad_value_is_an_error_of_one_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        Recipe(**changes)  # type: ignore[arg-type]
    assert str(raised.value).startswith(words)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_an_error_with_similar_names() -> None:
    there = "there are standard, madry-pgd7-2, .*, n-margin$"
    hint = "did you mean 'r-mc-la' or 'r-mc-la9' or 'r-mc-la\\+'\\? "
    with pytest.raises(ValueError, match=f"^no recipe is called 'rmcla'; {hint}{there}"):
        recipes.get("rmcla")
    for name in ("xyz", 7):
        with pytest.raises(ValueError, match=f"^no recipe is called {str(name)!r}; {there}"):
            recipes.get(name)  # type: ignore[arg-type]
