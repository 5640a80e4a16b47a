"""`gradient_norm` has its closed form on a linear model and both of its scales, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from evaluation_cases import Poisoned, assert_same, drifting_model, examples, linear_model, small_net, snapshot

from rmcla_fast.attacks.gradient_norm import GradientNorm, gradient_norm


def test_a_linear_model_has_a_closed_form() -> None:
    model, weight = linear_model()
    images, labels = examples(30, 5)
    images = images[:, :, :2, :2]
    p = model(images).softmax(1).detach()
    residual = p - torch.nn.functional.one_hot(labels, 5)
    expected = (residual.double() @ weight.double()).square().sum(1)
    got = gradient_norm(model, images, labels, batch_size=7)
    torch.testing.assert_close(got.squared, expected, rtol=1e-5, atol=1e-9)


def test_the_summary_has_both_scales() -> None:
    got = GradientNorm(torch.tensor([510.0, 1020.0, float("nan")], dtype=torch.float64))
    assert got.summary() == {
        "images": 3,
        "nonfinite": 1,
        "paper_scale": {"max": 2.0, "mean": 1.5},
        "strict_scale": {"max": pytest.approx(1020 / 65025), "mean": pytest.approx(765 / 65025)},
    }


def test_the_strict_scale_is_the_gradient_for_pixels_up_to_255() -> None:
    model = small_net().double()
    images, labels = examples(4)
    pixels = (images.double() * 255).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(pixels / 255), labels, reduction="sum")
    expected = torch.autograd.grad(loss, pixels)[0].square().flatten(1).sum(1)
    got = gradient_norm(model, images.double(), labels)
    torch.testing.assert_close(got.strict, expected)


def test_the_model_stays_as_it_was() -> None:
    model = drifting_model()
    before = snapshot(model)
    gradient_norm(model, *examples(8))
    assert_same(before, snapshot(model))


def test_images_with_nan_answers_are_counted_and_left_out() -> None:
    images, labels = examples(32)
    got = gradient_norm(Poisoned(), images, labels)
    bright = images[:, 0, 0, 0] > 0.5
    assert torch.equal(~got.finite, bright)
    assert got.summary()["nonfinite"] == int(bright.sum())


def test_a_batch_size_of_0_is_refused() -> None:
    images, labels = examples(4)
    with pytest.raises(ValueError, match=r"^batch_size must be a whole number of at least 1; got 0"):
        gradient_norm(small_net(), images, labels, batch_size=0)


def test_labels_out_of_range_are_refused() -> None:
    images, labels = examples(4)
    with pytest.raises(ValueError, match=r"^labels must lie in"):
        gradient_norm(small_net(), images, labels + 7)
