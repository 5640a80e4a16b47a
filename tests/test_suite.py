"""`evaluate` on any model: which PGD each attack is, what counts as fooled, and which errors bad input raises."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_cases import (
    Counting,
    Poisoned,
    Scaled,
    assert_same,
    drifting_model,
    examples,
    hide_extras,
    small_net,
    snapshot,
)
from torch import Tensor, nn

from rmcla_fast.attacks import ATTACKS, evaluate, pgd
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.attacks.suite import GRADIENT_ATTACKS, AttackResult, attack_names
from rmcla_fast.attacks.third_party import EXTERNAL
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.report import as_json, explanation

OWN = "clean,fgsm,ce20,cw100"
EPSILON = 2 / 255


def correct_examples(model: nn.Module, count: int = 100) -> tuple[Tensor, Tensor]:
    images, _ = examples(count)
    labels = model(images).argmax(1)
    labels[:10] = (labels[:10] + 1) % 10
    return images, labels


def test_accuracies_are_those_of_pgd() -> None:
    model = small_net()
    images, labels = correct_examples(model)
    results = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON)
    assert list(results) == ["clean", "fgsm", "ce20", "cw100"]
    assert results["clean"].accuracy == 90.0
    fgsm = pgd(model, images, labels, epsilon=EPSILON, step_size=EPSILON, steps=1, random_start=False)
    kept = (model(fgsm).argmax(1) == labels) & (model(images).argmax(1) == labels)
    assert results["fgsm"].accuracy == pytest.approx(100 * kept.float().mean().item())
    for name, objective, steps in (("ce20", "ce", 20), ("cw100", "margin", 100)):
        right = model(images).argmax(1) == labels
        found = pgd(
            model,
            images[right],
            labels[right],
            epsilon=EPSILON,
            step_size=EPSILON / 4,
            steps=steps,
            objective=objective,
            drop_fooled=True,
        )
        assert results[name].accuracy == pytest.approx(float((model(found).argmax(1) == labels[right]).sum()))
    assert 0 < results["ce20"].accuracy <= results["fgsm"].accuracy < 90
    assert all(result.images == 100 and result.seconds >= 0 for result in results.values())


def test_the_settings_are_the_papers() -> None:
    assert {name: attack.settings(0.1, restarts=3) for name, attack in GRADIENT_ATTACKS.items()} == {
        "fgsm": PGDSettings(0.1, 0.1, 1, random_start=False, drop_fooled=True),
        "ce10": PGDSettings(0.1, 0.025, 10, restarts=3, drop_fooled=True),
        "ce20": PGDSettings(0.1, 0.025, 20, restarts=3, drop_fooled=True),
        "ce50": PGDSettings(0.1, 0.025, 50, restarts=3, drop_fooled=True),
        "ce100": PGDSettings(0.1, 0.025, 100, restarts=3, drop_fooled=True),
        "ce1000": PGDSettings(0.1, 0.025, 1000, restarts=3, drop_fooled=True),
        "cw100": PGDSettings(0.1, 0.025, 100, "margin", 50.0, restarts=3, drop_fooled=True),
    }


def test_the_batch_size_changes_nothing_but_the_noise() -> None:
    model = small_net()
    images, labels = correct_examples(model)
    whole = evaluate(model, images, labels, attacks="clean,fgsm", epsilon=EPSILON)
    parts = evaluate(model, images, labels, attacks="clean,fgsm", epsilon=EPSILON, batch_size=7)
    for name in whole:
        assert torch.equal(whole[name].right, parts[name].right)


def test_restarts_never_raise_the_accuracy() -> None:
    model = small_net()
    images, labels = correct_examples(model)
    accuracies = [
        evaluate(model, images, labels, attacks="ce20", epsilon=EPSILON, restarts=count)["ce20"].accuracy
        for count in (1, 5)
    ]
    assert accuracies[1] <= accuracies[0]


def test_misclassified_images_are_not_attacked() -> None:
    model = Counting(small_net())
    images, labels = correct_examples(model.model)
    evaluate(model, images, labels, attacks="fgsm", epsilon=EPSILON)
    assert model.sizes[-3:] == [104, 96, 96]  # all images, then the 90 that are right; each in multiples of 8


def test_a_model_that_gets_everything_wrong_has_accuracy_0() -> None:
    model = small_net()
    images, _ = examples(10)
    labels = (model(images).argmax(1) + 1) % 10
    for result in evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON).values():
        assert result.accuracy == 0


def test_nan_counts_as_misclassified_and_is_reported() -> None:
    model = Poisoned()
    images, _ = examples(64)
    labels = model.model(images).argmax(1)
    bright = images[:, 0, 0, 0] > 0.5
    results = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON)
    assert results["clean"].accuracy == pytest.approx(100 * (~bright).float().mean().item())
    assert results["clean"].nonfinite == int(bright.sum())
    assert "NaN" in results["ce20"].notes[0]
    assert "NaN" in explanation(results, "")


def test_the_model_stays_as_it_was() -> None:
    model = drifting_model()
    before = snapshot(model)
    evaluate(model, *examples(16), attacks=OWN, epsilon=EPSILON)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_in_other_types_are_evaluated(dtype: torch.dtype) -> None:
    model = small_net().to(dtype)
    images, _ = examples(32)
    labels = model(images.to(dtype)).argmax(1)
    results = evaluate(model, images, labels, attacks=OWN, epsilon=EPSILON)
    assert results["clean"].accuracy == 100


def test_progress_runs_from_zero_to_one_for_each_attack() -> None:
    seen: dict[str, list[float]] = {}
    model = small_net()
    images, labels = correct_examples(model)
    evaluate(
        model,
        images,
        labels,
        attacks=OWN,
        epsilon=EPSILON,
        batch_size=40,
        progress=lambda name, fraction: seen.setdefault(name, []).append(fraction),
    )
    assert set(seen) == {"clean", "fgsm", "ce20", "cw100"}
    for fractions in seen.values():
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1


def test_the_json_has_the_documented_form() -> None:
    model = small_net()
    images, labels = correct_examples(model)
    results = evaluate(model, images, labels, attacks=["clean"], epsilon=8 / 255)
    document = json.loads(json.dumps(as_json(results, epsilon=8 / 255, model="small-cnn", data="digits")))
    assert set(document) == {"epsilon", "attacks", "model", "data"}
    assert document["epsilon"] == "8/255"
    assert document["attacks"]["clean"]["accuracy"] == 90.0
    assert document["attacks"]["clean"]["images"] == 100
    assert document["attacks"]["clean"]["seconds"] >= 0


def test_attack_names_are_put_in_the_order_of_the_tables() -> None:
    assert attack_names(" CW100, clean ") == ["clean", "cw100"]
    assert attack_names(reversed(ATTACKS)) == list(ATTACKS)
    with pytest.raises(
        ValueError, match=r"^attacks must be among clean, fgsm, .*autoattack; did you mean 'apgd'\? got 'pgd7'"
    ):
        attack_names("pgd7")
    with pytest.raises(ValueError, match=r"^attacks must name at least one"):
        attack_names("")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon must lie in \(0, 1\]"),
        ({"epsilon": 1.5}, r"^epsilon must lie in \(0, 1\]"),
        ({"epsilon": "8/255"}, "^epsilon must be a number"),
        ({"attacks": "pgd"}, "^attacks must be among"),
        ({"restarts": 0}, "^restarts must"),
        ({"batch_size": 0}, "^batch_size must"),
        ({"labels": torch.full((4,), 10)}, r"^labels must lie in \[0, 10\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "^labels must have shape"),
        ({"images": torch.rand(4, 3, 8, 8) * 2 - 1}, r"^images must lie in \[0, 1\]"),
        ({"images": torch.rand(0, 3, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}, "^images must hold"),
        ({"model": nn.Flatten(0)}, "^model must return logits"),
        ({"model": torch.flatten}, "^model must be a torch.nn.Module"),
        ({"attacks": None}, "^attacks must be names of clean, .*; got NoneType"),
        ({"attacks": 7}, "^attacks must be names of clean, .*; got int"),
        ({"attacks": ["clean", 3]}, "^attacks must be among.*; got '3'"),
        ({"seed": -1}, r"^seed must be a whole number in \[0, 2\^32\)"),
        ({"seed": 2**32}, "^seed must"),
        ({"seed": 0.5}, "^seed must"),
        ({"l2_budget": 0.0}, "^l2_budget must"),
    ],
)
def test_the_error_names_bad_input(change: dict[str, object], message: str) -> None:
    images, labels = examples(4)
    arguments = {
        "model": small_net(),
        "images": images,
        "labels": labels,
        "attacks": "clean,fgsm",
        "epsilon": EPSILON,
    } | change
    model, images, labels = (arguments.pop(name) for name in ("model", "images", "labels"))
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(model, images, labels, **arguments)


def test_a_model_with_another_number_of_classes_than_the_data_is_refused() -> None:
    images, labels = examples(8)
    with pytest.raises(ValueError, match=r"^model must have 12 classes, as the data have; got 10"):
        evaluate(small_net(), images, labels, attacks="clean", epsilon=EPSILON, num_classes=12)


@pytest.mark.parametrize("attack", EXTERNAL)
def test_the_error_for_a_missing_library_is_one_sentence_with_the_install_command(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_extras(monkeypatch)
    model = small_net()
    before = snapshot(model)
    with pytest.raises(UserError, match=r"pip install 'rmcla-fast\[eval\]'") as raised:
        evaluate(model, *examples(4), attacks=["clean", attack], epsilon=EPSILON)
    assert "\n" not in str(raised.value)
    assert_same(before, snapshot(model))


class Fickle(nn.Module):
    """A model that answers another number of classes from the second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleList([small_net(classes=10), small_net(classes=7)])
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.models[min(self.calls - 1, 1)](images)


def test_a_model_that_changes_its_number_of_classes_is_refused() -> None:
    images, labels = examples(8)
    with pytest.raises(ValueError, match=r"^model must have 10 classes, as the data have; got 7"):
        evaluate(Fickle(), images, labels, attacks="fgsm", epsilon=EPSILON, batch_size=4)


def test_a_figure_of_zero_is_written() -> None:
    entry = AttackResult(0.0, 4, 0.0, l2_budget=0.5, accuracy_in_budget=0.0).as_json()
    assert entry == {"accuracy": 0.0, "images": 4, "seconds": 0.0, "l2_budget": 0.5, "accuracy_in_budget": 0.0} | {
        "standard_error": 15.309  # two images are added to those that are right, and two to the others
    }


def test_logits_that_count_as_infinite_are_misclassified_and_do_not_seem_robust() -> None:
    """Their gradients are NaN, so that no attack could move the images."""
    images, labels = examples(24)
    model = small_net()
    labels = model(images).argmax(1)  # all are right
    large = nn.Sequential(model, Scaled(1e25))
    found = evaluate(large, images, labels, attacks="clean,fgsm", epsilon=EPSILON)
    assert [found[name].accuracy for name in ("clean", "fgsm")] == [0, 0]
    assert found["clean"].nonfinite == 24
    sound = evaluate(nn.Sequential(model, Scaled(1e15)), images, labels, attacks="clean", epsilon=EPSILON)
    assert sound["clean"].accuracy == 100
