"""One update: its number of passes, its results beside an independent port, compilation, and no reads on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from public_port import public_step
from step_cases import RefuseHostReads, batch, network, recipe, sgd, train, weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rmcla_fast import models, random_start, recipes
from rmcla_fast.training import ExponentialAverage, TrainStep

# The number of passes of the network.


@pytest.mark.parametrize("name", ["standard", "r-mc-la", "r-mc-la+", "madry-pgd7-2", "trades", "n-fgsm"])
def test_an_update_costs_exactly_the_passes_of_its_recipe(name: str) -> None:
    torch.manual_seed(0)
    model = models.create("preact-resnet18", 10)
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([3, 4])
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(images)
    step = TrainStep(model, sgd(model), recipe(name), capture="eager")
    with FlopCounterMode(display=False) as update:
        step(images, labels)
    passes = update.get_total_flops() / forward.get_total_flops()
    assert passes == pytest.approx(recipe(name).cost, rel=0.02)


# The whole step beside an independent implementation.

CLASSES = {"r-mc-la": 10, "r-mc-la+": 10, "r-mc-la9": 100}
MUTANTS = [{"attack_sign": 1.0}, {"target": "ll"}, {"clean_source": None}]


def against_the_port(name: str, updates: int, **wrong: Any) -> tuple[float, float]:
    """Return the relative error of the first update of the weights, and the largest relative error of all losses."""
    epsilon, classes = 0.3, CLASSES[name]
    ours, theirs = network(classes), network(classes)
    before = weights(ours)
    values = recipes.get(name).replace(epsilon=epsilon)
    step = TrainStep(ours, sgd(ours, 0.1), values, capture="eager", seed=5)
    optimizer = sgd(theirs, 0.1)
    options = {"clean_source": values.label_source == "clean", "top_k": values.top_k}
    options |= {key: not options[key] if value is None else value for key, value in wrong.items()}
    first, losses = 0.0, 0.0
    for n in range(updates):
        images, labels = batch(32, classes, seed=n)
        clean = images.float() / 255
        noise = random_start(torch.zeros_like(clean), epsilon, rng=torch.tensor([5, n]))
        loss = float(step(images, labels))
        expected = float(public_step(theirs, optimizer, clean, labels, noise, epsilon=epsilon, **options))
        losses = max(losses, abs(loss - expected) / expected)
        if n == 0:
            change = weights(theirs) - before
            first = float((weights(ours) - weights(theirs)).norm() / change.norm())  # relative to the update
    return first, losses


@pytest.mark.parametrize("name", CLASSES)
def test_the_step_agrees_with_the_public_step(name: str) -> None:
    first, losses = against_the_port(name, 10)
    assert first < 2e-4
    assert losses < 2e-3


@pytest.mark.parametrize("wrong", MUTANTS, ids=["flipped sign", "another target", "another label source"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_comparison_notices_a_wrong_step(name: str, wrong: dict[str, Any]) -> None:
    first, losses = against_the_port(name, 10, **wrong)
    assert first > 10 * 2e-4
    assert losses > 2e-3


# Modes, statistics and gradients.


@pytest.mark.parametrize("name", ["standard", "r-mc-la", "r-mc-la+", "madry-pgd7-2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_running_statistics_are_updated_once_per_update(name: str, mode: str) -> None:
    model = network().eval()
    step = TrainStep(model, sgd(model), recipe(name).replace(attack_mode=mode), capture="eager")
    train(step, 3)
    counters = [value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters
    assert all(int(value) == 3 for value in counters)
    assert model.training


def test_a_frozen_part_keeps_its_mode() -> None:
    model = network()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    before = frozen.running_mean.clone()
    train(TrainStep(model, sgd(model), recipe("r-mc-la"), capture="eager"), 2)
    assert torch.equal(frozen.running_mean, before)
    assert not frozen.training


def test_the_loss_is_a_detached_scalar() -> None:
    model = network()
    for name in recipes.names():
        loss = TrainStep(model, sgd(model), recipe(name), capture="eager")(*batch())
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert not loss.requires_grad


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_lowers_the_loss_of_a_batch(name: str) -> None:
    model = network()
    step = TrainStep(model, sgd(model, 0.1), recipe(name).replace(epsilon=0.03), capture="eager")
    losses = [float(step(*batch())) for _ in range(12)]
    assert losses[-1] < losses[0]


# Compiled steps, layouts and dtypes.


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "r-mc-la", "r-mc-la+", "trades"])
def test_the_compiled_step_gives_the_results_of_the_eager_one(name: str, fresh_compiler: None) -> None:
    """Both run in float64. In float32, rounding may flip the sign of a gradient near zero, and the results differ."""
    results = {}
    for capture in ("eager", "compile"):
        model = network().double()
        step = TrainStep(model, sgd(model, 0.02), recipe(name), capture=capture, seed=1)
        batches = [batch(seed=n) for n in range(4)] + [batch(7, seed=9)]  # a batch of another size runs uncompiled
        losses = [float(step(images.double() / 255, labels)) for images, labels in batches]
        results[capture] = (losses, weights(model))
    assert results["compile"][0] == pytest.approx(results["eager"][0], rel=1e-6)
    torch.testing.assert_close(results["compile"][1], results["eager"][1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_compiled_attack_uses_the_present_weights(fresh_compiler: None) -> None:
    """It is compiled once. After updates in place it must use the new weights, and it must not give them gradients."""
    model = network()
    step = TrainStep(model, sgd(model, 0.1), recipe("r-mc-la"), capture="compile", seed=1)
    images = batch()[0].float() / 255

    def gradient(forward: Any) -> tuple[Tensor, Tensor]:
        moved = images.clone().requires_grad_()
        logits = forward(moved)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), moved)[0]

    model.eval()
    gradient(step._passes.attack)
    model.train()
    train(step, 3)
    model.eval().zero_grad()
    for compiled, eager in zip(gradient(step._passes.attack), gradient(model), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    moved = images.clone().requires_grad_()
    step._passes.attack(moved).sum().backward()
    assert moved.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("images", ["uint8", "float", "channels_last"])
def test_images_may_be_uint8_or_float_and_get_the_layout_of_the_model(images: str) -> None:
    """uint8 and float images give the same loss. A channels_last model gets its images in that layout."""
    torch.manual_seed(0)
    model = models.WideResNet(10, depth=10, width=1)
    given = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    seen: list[Tensor] = []
    model.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layout = torch.contiguous_format
    if images == "channels_last":
        layout = torch.channels_last
        model.to(memory_format=layout)
    step = TrainStep(model, sgd(model), recipe("r-mc-la"), capture="eager")
    loss = step(given.float() / 255 if images == "float" else given, torch.arange(8))
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in seen)
    assert bool(loss.isfinite())
    if images == "float":
        torch.manual_seed(0)
        other = models.WideResNet(10, depth=10, width=1)
        assert float(TrainStep(other, sgd(other), recipe("r-mc-la"), capture="eager")(given, torch.arange(8))) == float(
            loss
        )


# No reads on the host.


def test_reading_a_tensor_on_the_host_is_noticed() -> None:
    with RefuseHostReads():
        value = torch.ones(3)
        for read in (value.sum().item, value.nonzero, lambda: bool(value[0]), lambda: value[value > 0]):
            with pytest.raises(AssertionError, match="reads a tensor on the host"):
                read()


@pytest.mark.parametrize("name", recipes.names())
def test_a_step_never_reads_a_tensor_on_the_host(name: str) -> None:
    model = network()
    step = TrainStep(
        model,
        sgd(model, fused=True),
        recipe(name),
        ema=ExponentialAverage(model, 0.9),
        clip_norm=1.0,
        skip_nonfinite=True,
    )
    given = batch()
    with RefuseHostReads():
        for _ in range(2):
            step(*given)
        step.epsilon = 0.05
