"""`pgd` equals other libraries' PGD and its closed form on a linear model, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from evaluation_cases import (
    EPSILON,
    STEP,
    Counting,
    Poisoned,
    assert_same,
    drifting_model,
    examples,
    linear_model,
    small_net,
    snapshot,
)
from torch import Tensor, nn

from rmcla_fast.attacks import pgd
from rmcla_fast.attacks.checked_model import checked
from rmcla_fast.attacks.pgd import PGDAttack
from rmcla_fast.attacks.pgd_settings import PGDSettings
from rmcla_fast.ops import random_start


def uniform_start(images: Tensor, epsilon: float, seed: int = 0) -> Tensor:
    return random_start(images, epsilon, rng=torch.tensor([seed, 0]), clip=True)


@pytest.mark.parametrize("steps", [1, 20])
def test_pgd_equals_torchattacks_image_by_image(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks")
    model = small_net()
    images, labels = examples()
    ours = pgd(model, images, labels, epsilon=EPSILON, step_size=STEP, steps=steps, seed=5)
    noise = uniform_start(images, EPSILON, 5) - images
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *_: self.copy_(noise))
    theirs = torchattacks.PGD(model, eps=EPSILON, alpha=STEP, steps=steps)(images, labels)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(model(ours).argmax(1), model(theirs).argmax(1))


def test_pgd_equals_foolbox_image_by_image() -> None:
    foolbox = pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")
    model = small_net()
    images, labels = examples()
    wrapped = foolbox.models.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=20, random_start=False)
    theirs = attack.run(wrapped, images, labels, epsilon=EPSILON)
    ours = pgd(model, images, labels, epsilon=EPSILON, step_size=STEP, steps=20, random_start=False)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(model(ours).argmax(1), model(theirs).argmax(1))


def test_fgsm_equals_torchattacks_and_foolbox() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks")
    foolbox = pytest.importorskip("foolbox", reason="pip install 'rmcla-fast[eval]'")
    model = small_net()
    images, labels = examples()
    ours = pgd(model, images, labels, epsilon=EPSILON, step_size=EPSILON, steps=1, random_start=False)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=EPSILON)(images, labels), atol=1e-6, rtol=0)
    wrapped = foolbox.models.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.LinfFastGradientAttack().run(wrapped, images, labels, epsilon=EPSILON)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", ["ce", "margin"])
def test_two_class_linear_model_has_a_closed_form(objective: str) -> None:
    model, weight = linear_model(classes=2)
    images, labels = examples(20, 2)
    images = images[:, :, :2, :2]
    towards = (weight[1 - labels] - weight[labels]).sign().reshape(images.shape)
    expected = (images + EPSILON * towards).clamp(0, 1)
    got = pgd(model, images, labels, epsilon=EPSILON, step_size=STEP, steps=30, objective=objective)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_the_margin_objective_stops_past_its_margin() -> None:
    model, _ = linear_model(classes=2)
    images, _ = examples(20, 2)
    images = images[:, :, :2, :2]
    model[1].weight.data.mul_(1e4)
    wrong = model(images).argmax(1)  # 1 - wrong is past the margin of 50 from the start, so its gradient is 0
    gap = (model(images)[:, 0] - model(images)[:, 1]).abs()
    far = gap > 50
    assert far.any()
    got = pgd(
        model, images, 1 - wrong, epsilon=EPSILON, step_size=STEP, steps=3, objective="margin", random_start=False
    )
    assert torch.equal(got[far], images[far])


def test_images_stay_in_the_ball_and_in_the_pixel_range() -> None:
    images, labels = examples(32)
    images = images.round(decimals=1)
    for dtype in (torch.float32, torch.float64):
        given = images.to(dtype)
        got = pgd(small_net().to(dtype), given, labels, epsilon=EPSILON, step_size=STEP, steps=9, restarts=2)
        assert got.dtype == dtype
        assert ((got - given).abs() <= EPSILON + 1e-7).all()
        assert got.min() >= 0
        assert got.max() <= 1


def test_the_seed_decides_the_images() -> None:
    model = small_net()
    images, labels = examples()
    first, again, other = (
        pgd(model, images, labels, epsilon=EPSILON, step_size=STEP, steps=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_uint8_images_mean_value_over_255() -> None:
    model = small_net()
    images, labels = examples()
    raw = (images * 255).round().to(torch.uint8)
    settings = {"epsilon": EPSILON, "step_size": STEP, "steps": 3}
    assert torch.equal(pgd(model, raw, labels, **settings), pgd(model, raw.float() / 255, labels, **settings))


def test_fooled_images_leave_the_batch_and_restarts_run_on_the_others() -> None:
    model = Counting(small_net())
    images, _ = examples(200)
    labels = model(images).argmax(1)
    labels[:50] = (labels[:50] + 1) % 10  # wrong from the start
    model.sizes.clear()
    settings = {"epsilon": 0.02, "step_size": 0.005, "steps": 5, "restarts": 3}
    got = pgd(model, images, labels, **settings, random_start=False, drop_fooled=True)
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert model.sizes[0] == 200
    assert model.sizes[1] < 200
    assert torch.equal(got[:50], images[:50])
    fooled = model(got).argmax(1) != labels
    survivors = int((~fooled).sum())
    assert 0 < survivors < 150
    assert model.sizes[6] == -(-survivors // 8) * 8  # the second restart begins; the model runs on multiples of 8

    plain = pgd(model, images, labels, **settings, random_start=False)
    assert bool((fooled | (model(plain).argmax(1) == labels)).all())  # dropping is never weaker


@pytest.mark.parametrize("drop_fooled", [False, True])
@pytest.mark.parametrize("restarts", [1, 2])
def test_the_result_says_which_images_the_model_gets_right(drop_fooled: bool, restarts: int) -> None:
    model = small_net()
    images, _ = examples(100)
    labels = model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 10
    settings = PGDSettings(0.02, step_size=0.005, steps=5, restarts=restarts, drop_fooled=drop_fooled)
    with checked(model) as asked:
        attack = PGDAttack(asked)
        found, right, _ = attack.run(images, labels, settings)
        assert torch.equal(attack.perturb(images, labels, settings), found)
    assert torch.equal(right, model(found).argmax(1) == labels)
    assert 0 < int(right.sum()) < 95


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_state_stay_as_they_were(fails: bool) -> None:
    model = drifting_model()
    before = snapshot(model)
    gradient = model.head.bias.grad
    images, labels = examples(16)
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="labels"):
            pgd(model, images, labels + 5, epsilon=EPSILON, step_size=STEP, steps=3)
    else:
        pgd(model, images, labels, epsilon=EPSILON, step_size=STEP, steps=3, restarts=2, drop_fooled=True)
    assert_same(before, snapshot(model))
    assert model.head.bias.grad is gradient
    assert torch.equal(torch.get_rng_state(), state)


def test_pgd_runs_inside_no_grad_and_inference_mode() -> None:
    model = small_net()
    images, labels = examples(8)
    settings = {"epsilon": EPSILON, "step_size": STEP, "steps": 3}
    expected = pgd(model, images, labels, **settings)
    with torch.no_grad():
        assert torch.equal(pgd(model, images, labels, **settings), expected)
    with torch.inference_mode():
        assert torch.equal(pgd(model, images.clone(), labels.clone(), **settings), expected)


def test_a_bf16_model_and_one_under_autocast_give_float32_images() -> None:
    images, labels = examples(8)
    settings = {"epsilon": EPSILON, "step_size": STEP, "steps": 3}
    got = pgd(small_net().bfloat16(), images, labels, **settings)
    assert got.dtype == torch.float32
    assert ((got - images).abs() <= EPSILON + 1e-7).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pgd(small_net(), images, labels, **settings).dtype == torch.float32


def test_images_have_no_nan_where_the_model_answers_nan() -> None:
    images, labels = examples(32)
    got = pgd(Poisoned(), images, labels, epsilon=EPSILON, step_size=STEP, steps=3, random_start=False)
    assert got.isfinite().all()
    bright = images[:, 0, 0, 0] > 0.5
    assert torch.equal(got[bright], images[bright])


def test_an_empty_batch_gives_no_images() -> None:
    images, labels = examples(4)
    got = pgd(small_net(), images[:0], labels[:0], epsilon=EPSILON, step_size=STEP, steps=3)
    assert got.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 8}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"step_size": 0.0}, "step_size"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"objective": "dlr"}, "objective"),
        ({"margin": -1.0}, "margin"),
    ],
)
def test_the_error_names_a_bad_setting(change: dict[str, object], name: str) -> None:
    images, labels = examples(4)
    settings = {"epsilon": EPSILON, "step_size": STEP, "steps": 3, **change}
    with pytest.raises((ValueError, TypeError), match=rf"^{name} "):
        pgd(small_net(), images, labels, **settings)


def test_attacks_with_the_same_step_have_the_same_step_settings() -> None:
    settings = PGDSettings(EPSILON, STEP, 20, restarts=3, drop_fooled=True)
    assert settings.one_step == PGDSettings(EPSILON, STEP, 100, drop_fooled=True).one_step
    assert settings.one_step != PGDSettings(EPSILON, STEP, 20, drop_fooled=False).one_step


@pytest.mark.parametrize(
    ("images", "labels", "name"),
    [
        (torch.rand(4, 3, 8), torch.zeros(4, dtype=torch.int64), "images"),
        (torch.rand(4, 3, 8, 8) * 255, torch.zeros(4, dtype=torch.int64), "images"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), "images"),
        (torch.rand(4, 3, 8, 8), torch.zeros(4), "labels"),
        (torch.rand(4, 3, 8, 8), torch.zeros(5, dtype=torch.int64), "labels"),
        (torch.rand(4, 3, 8, 8), torch.full((4,), -1), "labels"),
        (torch.rand(4, 3, 8, 8), torch.full((4,), 10), "labels"),
        (torch.rand(4, 3, 8, 8), [0, 1, 2, 3], "labels"),
    ],
)
def test_the_error_names_bad_images_and_labels(images: Tensor, labels: Tensor, name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{name} "):
        pgd(small_net(), images, labels, epsilon=EPSILON, step_size=STEP, steps=3)


def test_a_model_that_answers_no_logits_is_refused() -> None:
    images, labels = examples(4)
    with pytest.raises(ValueError, match=r"^model must return logits"):
        pgd(nn.Identity(), images, labels, epsilon=EPSILON, step_size=STEP, steps=3)
