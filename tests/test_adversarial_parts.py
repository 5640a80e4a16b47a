"""The parts of `adversarial_example`: the start, the sizes, the labels and targets of later steps, and the modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_cases import EPSILON, batch, network, recipe
from torch import Tensor, nn
from torch.nn import functional

from rmcla_fast import Recipe, adversarial_example, random_start, recipes, redistribute_labels
from rmcla_fast.adversarial_example import (
    Radii,
    attack,
    check_images_and_labels,
    first_images,
    fixed_target,
    radii,
    standard_normal,
)
from rmcla_fast.any_model import attack_mode, writable

RNG = torch.tensor([7, 3])
MARGIN_OF_ROUNDING = 2e-3  # the share of pixels whose gradient may be only a rounding error, with any sign


@pytest.mark.parametrize("scheme", ["main", "sup"])
@pytest.mark.parametrize("source", ["start", "clean"])
def test_the_labels_follow_the_whole_rule_of_the_recipe(source: str, scheme: str) -> None:
    model, (images, labels) = network().eval(), batch()
    rule: dict[str, Any] = {"beta": 3.0, "gamma": 0.5, "top_k": 2, "label_scheme": scheme}
    ours = Recipe(epsilon=EPSILON, steps=2, label_source=source, **rule)
    clean = images.float() / 255
    seen = clean if source == "clean" else random_start(images, EPSILON, rng=RNG)
    expected = redistribute_labels(model(seen).detach(), labels, **rule)
    got = adversarial_example(model, images, labels, ours, rng=RNG).soft_labels
    assert got is not None
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["mc", "ll", "margin", "untargeted"])
@pytest.mark.parametrize("source", ["start", "clean"])
def test_later_steps_keep_the_first_target(source: str, target: str) -> None:
    """The margin is an exception: each step takes the class that is the most confusing one at its own images."""
    model, (images, labels) = network().eval().double(), batch(seed=2)
    clean = images.double() / 255
    ours = Recipe(epsilon=EPSILON, steps=3, step_ratio=0.5, label_source=source, target=target)
    moved = random_start(clean, EPSILON, rng=RNG)
    others = functional.one_hot(labels, 10) == 0
    first = model(clean if source == "clean" else moved).detach().masked_fill(~others, -torch.inf)
    least = first.masked_fill(~others, torch.inf).argmin(1)
    for _ in range(3):
        moved.requires_grad_()
        logits = model(moved)
        if target == "margin":
            objective = logits.masked_fill(~others, -torch.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]
        elif target == "untargeted":
            objective = functional.cross_entropy(logits, labels, reduction="none")
        else:
            aim = least if target == "ll" else first.argmax(1)
            objective = -functional.cross_entropy(logits, aim, reduction="none")
        (grad,) = torch.autograd.grad(objective.sum(), moved)
        moved = (moved + EPSILON / 2 * grad.sign()).detach()
        moved = torch.minimum(torch.maximum(moved, clean - EPSILON), clean + EPSILON).clamp(0, 1)
    result = adversarial_example(model, clean, labels, ours, rng=RNG)
    assert float(((result.images - moved).abs() > 1e-6).double().mean()) < MARGIN_OF_ROUNDING
    assert result.soft_labels is None
    expected = {"untargeted": labels, "ll": least}.get(target, first.argmax(1))
    assert torch.equal(result.targets, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trades_steps_along_the_gradient_of_its_divergence(dtype: torch.dtype) -> None:
    model, (images, labels) = network().eval().to(dtype), batch(seed=3)
    clean = images.to(dtype) / 255
    ours = recipe("trades").replace(steps=1, start_ratio=0.05)
    start = (clean + 0.05 * standard_normal(clean.shape, RNG).to(dtype)).requires_grad_()
    p = model(clean).softmax(1).detach()
    divergence = functional.kl_div(model(start).log_softmax(1), p, reduction="sum")
    (grad,) = torch.autograd.grad(divergence, start)
    moved = (start + EPSILON / 4 * grad.sign()).detach()
    moved = torch.minimum(torch.maximum(moved, clean - EPSILON), clean + EPSILON).clamp(0, 1)
    result = adversarial_example(model, clean, labels, ours, rng=RNG)
    assert result.images.dtype == dtype
    assert float(((result.images - moved).abs() > 1e-6).double().mean()) < MARGIN_OF_ROUNDING
    assert torch.equal(result.targets, labels)
    assert result.soft_labels is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trades_computes_its_gradient_in_32_bits(dtype: torch.dtype) -> None:
    """The two probabilities of this network differ by less than 16 bits resolve, and both are near 1 / 2."""
    seen: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        logits = torch.stack([mean, -mean], 1).to(dtype)
        if logits.requires_grad:
            logits.register_hook(seen.append)
        return logits

    images, labels = torch.full((2, 1, 2, 2), 2.0**-10), torch.zeros(2, dtype=torch.int64)
    ours = Recipe(steps=1, start="none", target="untargeted", outer_loss="trades")
    sizes = Radii(0.0, 0.1, 0.1)
    clean, noisy = images, images * 1.5
    calls = iter([clean, noisy])
    attack(lambda moved: forward(next(calls) + 0 * moved), images, labels, ours, sizes, rng=RNG)
    logits = [torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1) for x in (noisy, clean)]
    expected = logits[0].softmax(1) - logits[1].softmax(1)
    torch.testing.assert_close(seen[0].float(), expected, rtol=0.01, atol=0)


def test_a_step_without_projection_reaches_the_whole_pixel_range() -> None:
    model, (images, labels) = network().eval(), batch()
    ours = Recipe(epsilon=EPSILON, step_ratio=20.0, project=False, target="untargeted")
    moved = adversarial_example(model, images, labels, ours, rng=RNG).images
    assert float(((moved == 0) | (moved == 1)).float().mean()) > 0.95


def test_sizes_of_the_attack() -> None:
    uniform = Recipe(epsilon=0.1, start_ratio=2.0, step_ratio=0.5)
    assert radii(uniform) == Radii(start=0.2, step=0.05, epsilon=0.1)
    assert radii(uniform, 0.3) == Radii(start=0.6, step=0.15, epsilon=0.3)
    assert radii(uniform, 0.0) == Radii(start=0.0, step=0.0, epsilon=0.0)
    normal = uniform.replace(start="normal", start_ratio=0.001)
    assert radii(normal, 0.3) == Radii(start=0.001, step=0.15, epsilon=0.3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_start_of_an_attack(dtype: torch.dtype) -> None:
    images = batch()[0]
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    clean = images.float() / 255 if dtype == torch.uint8 else images
    sizes = Radii(0.2, 0.1, 0.1)
    last = images.contiguous(memory_format=torch.channels_last)
    for given in (images, last):
        none = first_images(given, Recipe(start="none"), sizes, RNG)
        assert torch.equal(none, clean)
        assert none.data_ptr() != given.data_ptr()
        assert none.stride() == given.stride()
    noise = standard_normal(images.shape, RNG).to(clean.dtype)
    assert torch.equal(first_images(images, Recipe(start="normal"), sizes, RNG), clean + 0.2 * noise)
    uniform = first_images(images, Recipe(start="uniform"), sizes, RNG)
    assert torch.equal(uniform, random_start(images, 0.2, rng=RNG))
    assert float(uniform.min()) < 0, "the start is not clipped"
    assert uniform.dtype == none.dtype == clean.dtype


def test_normal_noise_is_the_box_muller_transform_of_uniform_noise() -> None:
    shape = torch.Size([3, 5])
    first, second = random_start(torch.zeros(2, *shape), 0.5, rng=RNG).double() + 0.5
    expected = (-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos()
    torch.testing.assert_close(standard_normal(shape, RNG).double(), expected, atol=1e-6, rtol=1e-5)


def test_the_target_of_later_steps() -> None:
    targets = torch.tensor([2, -1, 0])
    for target in ("untargeted", "margin"):
        assert fixed_target(target, targets) == target
    for target in ("mc", "ll", "random", "mosa", "mix"):
        kept = fixed_target(target, targets)
        assert isinstance(kept, Tensor)
        assert kept.tolist() == [2, 0, 0]


def test_a_mode_inside_the_block_and_after_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)))
    for whole in (True, False):
        model.train(whole)
        model[0].eval()  # a frozen batch norm
        before = [module.training for module in model.modules()]
        with attack_mode(model, "eval"):
            assert not any(module.training for module in model.modules())
        assert [module.training for module in model.modules()] == before
        with attack_mode(model, "train"):
            inside = [module.training for module in model.modules()]
        assert inside == (before if whole else [True] * len(before))
        assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_buffers_are_restored_after_training_mode(mode: str) -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("shared", torch.ones(1).expand(3))  # PyTorch cannot write into it
    with attack_mode(model, mode):
        model.get_buffer("running_mean").fill_(5.0)
        model.get_buffer("num_batches_tracked").add_(1)
    kept = mode == "eval"  # nothing writes into buffers in evaluation mode
    assert model.get_buffer("running_mean").tolist() == ([5.0, 5.0] if kept else [0.0, 0.0])
    assert model.get_buffer("num_batches_tracked").item() == int(kept)


def test_what_pytorch_can_write_into() -> None:
    assert writable(torch.ones(2, 3))
    assert writable(torch.ones(2, 3).T)
    assert writable(torch.ones(()))
    assert writable(torch.ones(1).as_strided((1, 1), (0, 0)))
    assert not writable(torch.ones(1).expand(3))
    assert not writable(torch.ones(2, 1).expand(2, 2))


IMAGES, LABELS = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (IMAGES[0], LABELS, "images must have shape (B, C, H, W); got (1, 2, 2)"),
        (
            *(IMAGES.bool(), LABELS),
            "images must be uint8, float32, float64, float16 or bfloat16; got torch.bool",
        ),
        (IMAGES, LABELS.int(), "labels must be an int64 tensor of shape (4,); got torch.int32"),
        (IMAGES, [0] * 4, "labels must be an int64 tensor of shape (4,); got list"),
        (IMAGES, LABELS[:3], "labels must have shape (4,), one per image; got (3,)"),
        (IMAGES, LABELS[:, None], "labels must have shape (4,), one per image; got (4, 1)"),
        (IMAGES, LABELS.to("meta"), "labels must be on cpu, as images is; got meta"),
    ],
)
def test_bad_images_and_labels_raise_this_sentence(images: Any, labels: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        check_images_and_labels(images, labels)
    assert str(raised.value) == sentence


def test_without_an_attack_the_images_are_the_clean_ones() -> None:
    images, labels = batch()
    clean = (images.float() / 255).requires_grad_()
    for given in (images, clean):
        result = adversarial_example(network(), given, labels, recipes.get("standard"), rng=RNG)
        assert torch.equal(result.images, clean)
        assert not result.images.requires_grad
        assert result.targets is labels
        assert result.soft_labels is None
