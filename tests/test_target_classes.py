"""Target classes of other methods: a random class, the nearest by the last layer's weight, and a mixture of rules."""

from __future__ import annotations

import pytest
import torch
from step_cases import batch, network, recipe
from torch import nn

from rmcla_fast import adversarial_example
from rmcla_fast.target_classes import nearest_class, random_class

RNG = torch.tensor([7, 3])


def test_random_classes_are_uniform_over_the_others() -> None:
    labels = torch.randint(0, 5, (40_000,))
    drawn = random_class(labels, 5, RNG)
    assert bool((drawn != labels).all())
    counts = torch.bincount(labels * 5 + drawn, minlength=25).reshape(5, 5)
    shares = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(shares, (torch.ones(5, 5) - torch.eye(5)) / 4, atol=0.02, rtol=0)
    assert torch.equal(drawn, random_class(labels, 5, RNG))
    assert torch.equal(random_class(torch.tensor([0, 1]), 2, RNG), torch.tensor([1, 0]))


def test_random_classes_need_one_seed_and_step() -> None:
    with pytest.raises(ValueError, match=r"rng must have shape \(2,\), seed and step; got \(4, 2\)"):
        random_class(torch.zeros(4, dtype=torch.int64), 5, RNG.expand(4, 2))


def test_nearest_class_follows_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(50, 6, generator=generator), torch.randn(6, 9, generator=generator)
    labels = torch.randint(0, 6, (50,), generator=generator)
    found = nearest_class(logits, labels, weight)
    for row in range(50):
        c = int(labels[row])
        distances = {}
        for k in range(6):
            if k != c:
                margin = float(logits[row, c] - logits[row, k])
                distances[k] = (1e4 if margin <= 1e-4 else margin) / float((weight[c] - weight[k]).norm())
        assert int(found[row]) == min(distances, key=lambda k: distances[k])


def test_mix_is_nearest_for_correct_and_most_confusing_for_misclassified_images() -> None:
    model, (images, _) = network().eval(), batch()
    with torch.no_grad():
        predicted = model(images.float() / 255).argmax(1)
    labels = predicted.clone()
    labels[::2] = (labels[::2] + 1) % 10
    mix, mosa, mc = (
        adversarial_example(model, images, labels, recipe(name), rng=RNG).targets
        for name in ("r-mix-la+", "r-mosa-la+", "r-mc-la+")
    )
    assert torch.equal(mix[1::2], mosa[1::2])
    assert torch.equal(mix[::2], mc[::2])


def test_nearest_class_needs_a_linear_classifier() -> None:
    images, labels = batch()
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(ValueError, match=r"reads the weight of the last nn\.Linear, and the model has none"):
        adversarial_example(convolutional, images, labels, recipe("r-mosa-la"), rng=RNG)
    inner = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 7), nn.Unflatten(1, (1, 1, 7)), nn.Conv2d(1, 10, (1, 7)), nn.Flatten()
    )
    with pytest.raises(ValueError, match="it has 7 outputs and the model returns 10 logits"):
        adversarial_example(inner, images, labels, recipe("r-mix-la"), rng=RNG)
