"""Tests of `TrainStep`: resuming, epsilon, averages, 16 bits, several processes, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from step_cases import batch, network, process_group, recipe, sgd, train, weights
from torch import Tensor, nn

from rmcla_fast import adversarial_example
from rmcla_fast.training import ExponentialAverage, TrainStep
from rmcla_fast.training.forward import Passes

# State, noise and epsilon.


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_resumed_step_gives_the_bits_of_an_uninterrupted_one(accumulate: int) -> None:
    model = network()
    optimizer = sgd(model)
    step = TrainStep(model, optimizer, recipe("r-mc-la"), seed=2**40 + 3, accumulate=accumulate)
    train(step, 2)
    step(*batch(3))  # fewer images than pieces
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), step.state_dict()))
    assert saved[2]["step"] == 3
    expected = float(step(*batch(seed=5)))
    again = network()
    resumed_optimizer = sgd(again)
    resumed = TrainStep(again, resumed_optimizer, recipe("r-mc-la"), seed=2**40 + 3, accumulate=accumulate)
    again.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    assert float(resumed(*batch(seed=5))) == expected
    assert torch.equal(weights(again), weights(model))


def test_each_rank_draws_different_noise() -> None:
    losses = []
    for rank in (0, 1, 2**31 + 1):
        model = network()
        losses.append(float(TrainStep(model, sgd(model), recipe("r-mc-la"), seed=(rank << 32) + 7)(*batch())))
    assert len(set(losses)) == 3


def test_epsilon_can_change_between_updates() -> None:
    def one_update(start: float) -> Tensor:
        model = network()
        step = TrainStep(model, sgd(model), recipe("n-mc-la").replace(epsilon=start), seed=1)
        step.epsilon = 0.07
        assert step.epsilon == 0.07
        step(*batch())
        return weights(model)

    assert torch.equal(one_update(0.07), one_update(0.2))
    model = network()
    step = TrainStep(model, sgd(model), recipe("r-mc-la"))
    step.epsilon = 0  # a warm-up may begin without an attack
    assert bool(step(*batch()).isfinite())
    with pytest.raises(ValueError, match=r"epsilon must not be negative; got -0\.1"):
        step.epsilon = -0.1


# Averages, precision and clipping.


def test_average_follows_the_weights() -> None:
    model = network()
    average = ExponentialAverage(model, 0.75)
    step = TrainStep(model, sgd(model), recipe("r-mc-la"), ema=average)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for n in range(3):
        step(*batch(seed=n))
        for name, value in model.state_dict().items():
            moving = value.is_floating_point()
            expected[name] = 0.75 * expected[name] + 0.25 * value if moving else value.clone()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not average.module.training
    assert torch.equal(average(torch.zeros(1, 1, 8, 8)), average.module(torch.zeros(1, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\); got 1.0"):
        ExponentialAverage(model, 1.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["r-mc-la+", "trades"])
def test_losses_in_16_bits_are_close_to_those_in_fp32(precision: str, name: str) -> None:
    losses = {}
    for kind in ("fp32", precision):
        model = network()
        step = TrainStep(model, sgd(model, 0.02, fused=True), recipe(name), precision=kind, seed=1)
        losses[kind] = train(step, 4)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)


def test_images_that_require_grad_get_no_gradient() -> None:
    images, labels = batch()
    wanting = (images.float() / 255).requires_grad_()
    for name in ("standard", "r-mc-la+", "trades"):
        model = network()
        TrainStep(model, sgd(model), recipe(name))(wanting, labels)
        assert wanting.grad is None
        example = adversarial_example(model, wanting, labels, recipe(name), rng=torch.tensor([0, 0]))
        assert not example.images.requires_grad


def test_gradients_are_clipped() -> None:
    model = network()
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=1.0), recipe("r-mc-la"), clip_norm=1e-3)
    before = weights(model)
    train(step, 1)
    assert float((weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_a_distributed_model_takes_the_same_step(tmp_path: Any) -> None:
    plain = network()
    expected = train(TrainStep(plain, sgd(plain), recipe("r-mc-la"), seed=1), 3)
    with process_group(tmp_path):
        wrapped = nn.parallel.DistributedDataParallel(network())
        average = ExponentialAverage(wrapped.module, 0.5)
        step = TrainStep(wrapped, sgd(wrapped), recipe("r-mc-la"), seed=1, ema=average)
        assert train(step, 3) == expected
        assert torch.equal(weights(wrapped), weights(plain))


# Bad input.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "net"}, "model must be a torch.nn.Module; got str"),
        ({"model": nn.Flatten()}, "model must have parameters"),
        ({"optimizer": None}, "optimizer must be of type Optimizer; got NoneType"),
        ({"recipe": "r-mc-la"}, "recipe must be of type Recipe; got str"),
        ({"ema": 0.99}, "ema must be of type ExponentialAverage; got float"),
        ({"precision": "int8"}, "precision must be one of 'fp32', 'bf16', 'fp16'; got 'int8'"),
        ({"precision": "fp16"}, 'precision "fp16" needs an optimizer made with fused=True'),
        ({"skip_nonfinite": True}, "skip_nonfinite needs an optimizer made with fused=True"),
        ({"capture": "graph"}, "capture must be one of"),
        ({"capture": "cuda-graph"}, "capture 'cuda-graph' is not possible: the model is on cpu"),
        ({"seed": 1.5}, "seed must be of type int; got float"),
        ({"seed": 2**64}, "seed must fit 64 bits"),
        ({"clip_norm": 0.0}, "clip_norm must be positive; got 0.0"),
        ({"accumulate": 0}, "accumulate must be at least 1; got 0"),
        ({"accumulate": 2.0}, "accumulate must be of type int; got float"),
    ],
)
def test_a_bad_argument_raises_one_sentence(changes: dict[str, Any], words: str) -> None:
    model = network()
    given: dict[str, Any] = {"model": model, "optimizer": sgd(model), "recipe": recipe("r-mc-la"), **changes}
    with pytest.raises((TypeError, ValueError)) as raised:
        TrainStep(given.pop("model"), given.pop("optimizer"), given.pop("recipe"), **given)
    assert words in str(raised.value)


def test_passes_are_compiled_for_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch may be the smaller one, when a run resumes at the last batch of an epoch."""
    compiled: list[int] = []

    def compiler(forward: Any, **options: Any) -> Any:
        return lambda images: compiled.append(len(images)) or forward(images)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compiler)
    passes = Passes(network(), "fp32", compiled=True)
    for size in (3, 8, 3, 8):
        passes.update(torch.zeros(size, 1, 8, 8))
    assert compiled == [3, 8, 8]


def test_a_bad_batch_raises_one_sentence() -> None:
    model = network()
    step = TrainStep(model, sgd(model), recipe("standard"))
    images, labels = batch()
    with pytest.raises(ValueError, match="images must hold at least one image"):
        step(images[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels must have shape \(16,\)"):
        step(images, labels[:3])
    with pytest.raises(ValueError, match="labels must lie in"):
        step(images, labels + 10)
    assert step.calls == 0
