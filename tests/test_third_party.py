"""The attacks of other libraries give their own results and known answers, and AutoAttack's checks need no package."""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
import types

import numpy as np
import pytest
import torch
from evaluation_cases import assert_same, drifting_model, examples, hide_extras, linear_model, small_net, snapshot

from rmcla_fast.attacks import evaluate
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.third_party import EXTERNAL, Task, warnings_of_autoattack

pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")
pytest.importorskip("pyautoattack", reason="pip install 'rmcla-fast[eval]'")

EPSILON = 2 / 255
FOOLBOX = ("mi", "cw-l2-a", "deepfool-l2")


def labelled(count: int = 16, classes: int = 10) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = small_net(classes=classes)
    images, _ = examples(count)
    return model, images, model(images).argmax(1)


def test_autoattack_gives_the_librarys_own_result() -> None:
    import pyautoattack

    model, images, labels = labelled(12)
    ours = evaluate(model, images, labels, attacks="autoattack", epsilon=6 / 255, seed=3)["autoattack"]
    attack = pyautoattack.AutoAttack(model, norm="Linf", eps=6 / 255, seed=3, version="standard")
    _, answers = attack.run_standard_evaluation(images, labels, batch_size=12)
    assert torch.equal(ours.right, answers == labels)
    assert ours.library is None
    assert 0 < ours.accuracy < 100


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_autoattack_runs_with_few_classes_and_says_what_it_left_out(classes: int) -> None:
    model, images, labels = labelled(4, classes)
    result = evaluate(model, images, labels, attacks="autoattack", epsilon=1 / 255)["autoattack"]
    assert any("needs 4 classes" in note for note in result.notes) == (classes < 4)
    assert not any("more target classes" in note for note in result.notes)


def test_mi_fgsm_gives_foolbox_own_result() -> None:
    import foolbox

    model, images, labels = labelled(64)
    wrapped = foolbox.models.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(momentum=1.0, rel_stepsize=0.2, steps=10)
    theirs = attack.run(wrapped, images, labels, epsilon=EPSILON)
    ours = evaluate(model, images, labels, attacks="mi", epsilon=EPSILON)["mi"]
    assert torch.equal(ours.right, model(theirs).argmax(1) == labels)


def test_deepfool_on_a_linear_model_reaches_the_nearest_boundary() -> None:
    model, weight = linear_model()
    images, _ = examples(40)
    images = images[:, :, :2, :2] * 0.2 + 0.4  # far from the pixel bounds
    logits = model(images).detach()
    labels = logits.argmax(1)
    gap = logits.gather(1, labels[:, None]) - logits
    distance = gap / (weight[labels][:, None] - weight[None]).norm(dim=2).clamp_min(1e-12)
    expected = distance.masked_fill(torch.nn.functional.one_hot(labels, 5).bool(), float("inf")).amin(1)
    with checked(model) as asked:
        verdict = EXTERNAL["deepfool-l2"].run(Task(asked, images, labels, 0.1, 0, lambda _: None))
    assert not verdict.right.any()
    assert verdict.distortion is not None
    # DeepFool overshoots by 2 %, and adds 1e-4 to the distance in logits over the norm.
    torch.testing.assert_close(verdict.distortion, expected * 1.02, rtol=5e-3, atol=5e-4)


def test_carlini_wagner_that_finds_nothing_leaves_the_image_right() -> None:
    """Foolbox returns a black image there. That is no success, even where the model is wrong on black images."""

    class Certain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            black = images.flatten(1).sum(1, keepdim=True) == 0
            sure = torch.tensor([[9.0, 0, 0, 0]]).expand(len(images), 4)
            return torch.where(black, -sure, sure) + 0 * images.mean() * self.scale

    images, _ = examples(6)
    labels = torch.zeros(6, dtype=torch.int64)
    result = evaluate(Certain(), images, labels, attacks="cw-l2-a", epsilon=0.1)["cw-l2-a"]
    assert result.accuracy == 100
    assert result.distortion_median is None
    assert result.accuracy_in_budget == 100


def test_l2_attacks_report_distortion_and_the_accuracy_within_a_budget() -> None:
    model, images, labels = labelled(32)
    result = evaluate(model, images, labels, attacks="deepfool-l2", epsilon=EPSILON, l2_budget=0.2)["deepfool-l2"]
    assert result.accuracy == 0  # success at any distortion
    assert result.l2_budget == 0.2
    assert result.distortion_median is not None
    assert result.distortion_mean is not None
    assert 0 < result.accuracy_in_budget < 100
    wide = evaluate(model, images, labels, attacks="deepfool-l2", epsilon=EPSILON, l2_budget=100.0)["deepfool-l2"]
    assert wide.accuracy_in_budget == 0


def test_the_model_and_the_random_states_stay_as_they_were() -> None:
    model = drifting_model()
    images, labels = examples(8)
    before = snapshot(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trace = sys.gettrace()
    evaluate(model, images, labels, attacks=[*FOOLBOX, "autoattack"], epsilon=EPSILON)
    assert_same(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert sys.gettrace() is trace


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("auto-attack").level
    model, images, labels = labelled(6)
    evaluate(model, images, labels, attacks=[*FOOLBOX, "autoattack"], epsilon=EPSILON)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert not caplog.records
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("auto-attack").level == level
    assert not logging.getLogger("auto-attack").handlers


def test_the_same_seed_gives_the_same_result() -> None:
    model, images, labels = labelled(8)
    first, again = (evaluate(model, images, labels, attacks="cw-l2-a,autoattack", epsilon=12 / 255) for _ in range(2))
    for name in first:
        assert torch.equal(first[name].right, again[name].right)


def test_every_library_attacks_a_bf16_model() -> None:
    model = small_net().bfloat16()
    images, _ = examples(6)
    labels = model(images.bfloat16()).argmax(1)
    for result in evaluate(model, images, labels, attacks=[*FOOLBOX, "autoattack"], epsilon=EPSILON).values():
        assert 0 <= result.accuracy <= 100


def test_autoattack_needs_no_library_but_says_that_its_checks_were_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = labelled(8)
    with_checks = evaluate(model, images, labels, attacks="autoattack", epsilon=0.3)["autoattack"]
    hide_extras(monkeypatch)
    without = evaluate(model, images, labels, attacks="autoattack", epsilon=0.3)["autoattack"]
    assert torch.equal(without.right, with_checks.right)
    assert not with_checks.notes
    (note,) = without.notes
    assert "checks" in note
    assert "pip install 'rmcla-fast[eval]'" in note


def test_autoattacks_checks_find_a_random_model_and_probabilities() -> None:
    class Random(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_net()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (self.model(images) + 1e-3 * torch.rand(len(images), 10)).softmax(1)

    model, (images, _) = Random(), examples(6)
    with checked(model) as asked:
        notes = warnings_of_autoattack(asked, images, asked.predict(images))
    assert len(notes) == 2
    assert all(note.startswith("AutoAttack: ") for note in notes)


def test_the_checks_of_the_authors_package_are_used_where_only_that_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stand-in has the signatures of github.com/fra31/auto-attack."""
    checks = types.ModuleType("autoattack.checks")
    checks.check_randomized = lambda model, x, y, bs=250, n=5, alpha=1e-4, logger=None: logger.warning("It is. See x.")
    checks.check_range_output = lambda model, x, alpha=1e-5, logger=None: None
    checks.check_dynamic = lambda model, x, is_tf_model=False, logger=None: None
    monkeypatch.setitem(sys.modules, "autoattack", types.ModuleType("autoattack"))
    monkeypatch.setitem(sys.modules, "autoattack.checks", checks)
    found = importlib.util.find_spec
    names = {"pyautoattack": None, "autoattack": found("json")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: names[name] if name in names else found(name, *a))
    model, images, labels = labelled(6)
    with checked(model) as asked:
        assert warnings_of_autoattack(asked, images, labels) == ["AutoAttack: It is."]


@pytest.mark.parametrize("name", ["mi", "cw-l2-a", "deepfool-l2"])
def test_a_foolbox_attack_reports_its_progress(name: str) -> None:
    fractions: list[float] = []
    images, _ = examples(8)
    model = small_net()
    evaluate(
        model,
        images,
        model(images).argmax(1),
        attacks=name,
        epsilon=0.03,
        progress=lambda attack, fraction: fractions.append(fraction) if attack == name else None,
    )
    assert len(fractions) > 5
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.2
    assert fractions[-1] == 1.0
