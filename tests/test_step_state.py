"""Tests of `TrainStep`: resuming, epsilon, averages, 16 bits, skipped updates, several processes, capture, errors."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from step_cases import batch, network, process_group, recipe, sgd, train, weights
from torch import Tensor, nn

from rmcla_fast import adversarial_example
from rmcla_fast.cuda_graph import CapturedUpdate, resolve_capture
from rmcla_fast.training import ExponentialAverage, TrainStep
from rmcla_fast.training.forward import Passes
from rmcla_fast.training.loss_scale import LossScale

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


# Averages, precision, clipping and skipped updates.


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


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_loss_scale_halves_when_an_update_overflows(accumulate: int) -> None:
    model = network()
    step = TrainStep(model, sgd(model, fused=True), recipe("r-mc-la"), precision="fp16", accumulate=accumulate)
    train(step, 1)
    assert step._loss_scale is not None
    step._loss_scale.scale.fill_(2.0**40)  # makes every fp16 gradient overflow
    before = copy.deepcopy(model.state_dict())
    train(step, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert float(step._loss_scale.scale) == 2.0**39
    assert step.skipped is not None
    assert int(step.skipped) == 1
    state = step.state_dict()
    again = TrainStep(model, sgd(model, fused=True), recipe("r-mc-la"), precision="fp16")
    again.load_state_dict(state)
    assert again._loss_scale is not None
    assert float(again._loss_scale.scale) == 2.0**39


@pytest.mark.parametrize(("accumulate", "image"), [(1, 0), (4, 0), (4, 12)])
def test_a_nonfinite_update_can_be_skipped(accumulate: int, image: int) -> None:
    """The whole update is skipped, whichever piece is not finite."""
    images, labels = batch()
    broken = images.float() / 255
    broken[image, 0, 0, 0] = torch.nan
    model = network()
    step = TrainStep(model, sgd(model, fused=True), recipe("r-mc-la"), skip_nonfinite=True, accumulate=accumulate)
    before = copy.deepcopy(model.state_dict())
    assert bool(step(broken, labels).isnan())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert bool(step(images, labels).isfinite())
    assert step.skipped is not None
    assert int(step.skipped) == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_skipped_update_puts_buffers_back_to_the_bit(skip: bool) -> None:
    """Buffers may have any dtype, layout and value. There is one call per dtype."""
    model, loss_scale = nn.Linear(2, 2), LossScale(torch.device("cpu"), scaled=False)
    old = {
        "running": torch.tensor([1.5, torch.nan, torch.inf, -0.0]),
        "other": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "strided": torch.rand(4, 4)[:, ::2],
        "count": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False]),
        "narrow": torch.tensor([0.1, -torch.inf], dtype=torch.float16),
        "none": torch.empty(0),
    }
    for name, value in old.items():
        model.register_buffer(name, value.clone(memory_format=torch.preserve_format))
    before = loss_scale.remember(model)
    new = {name: torch.ones_like(value) for name, value in old.items()}
    new["running"] = torch.tensor([torch.nan, 0.0, -torch.inf, 2.0])
    for name, value in new.items():
        model.get_buffer(name).copy_(value)
    loss_scale._found_inf.fill_(float(skip))
    loss_scale.settle(model, sgd(model, fused=True), before)
    for name, value in (old if skip else new).items():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=0, atol=0, equal_nan=True)
        assert model.get_buffer(name).stride() == old[name].clone().stride()
    assert len(before) == 4


def test_momentum_is_zero_after_a_skipped_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused SGD allocates the momentum and, if it skips, leaves in it what was in the memory, which is NaN here."""
    images, labels = batch()
    model = network()
    optimizer = sgd(model, fused=True)
    step = TrainStep(model, optimizer, recipe("r-mc-la"), skip_nonfinite=True)
    made = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda like: made(like).fill_(torch.nan))
    step(torch.full(images.shape, torch.nan), labels)
    monkeypatch.undo()
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
    step(images, labels)
    assert bool(weights(model).isfinite().all())


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


# Capture, and bad input.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "net"}, "model must be of type Module; got str"),
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


def test_the_graph_needs_an_optimizer_that_can_be_captured() -> None:
    model, cuda = network(), torch.device("cuda")
    adam = torch.optim.Adam(model.parameters(), fused=True)
    assert resolve_capture("auto", model, adam, cuda) == "compile"
    with pytest.raises(ValueError, match="is not possible: the optimizer must be made with capturable=True"):
        resolve_capture("cuda-graph", model, adam, cuda)
    assert resolve_capture("auto", model, sgd(model, fused=True), cuda) == "cuda-graph"


@pytest.mark.parametrize("sizes", [[4, 4, 3] * 3, [3] + [4, 4, 3] * 3, [3, 4] * 4], ids=str)
def test_updates_are_captured_in_short_epochs_and_after_a_resume(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up ends even with three updates an epoch. The test records what is run, captured and replayed."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    optimizer = sgd(network())
    update = CapturedUpdate(lambda *batch: torch.zeros(()), optimizer, torch.device("cpu"))
    done: list[str] = []

    def capture(given: list[Tensor]) -> None:
        done.append("capture")
        update._inputs, update._loss = [tensor.clone() for tensor in given], torch.zeros(())
        update._graph = type("Graph", (), {"replay": lambda self: done.append(f"replay {len(given[0])}")})()

    monkeypatch.setattr(update, "_capture", capture)
    monkeypatch.setattr(update, "_on_side_stream", lambda images, *rest: done.append(f"run {len(images)}"))
    for size in sizes:
        update(*batch(size))
    captured = max(sizes) if sizes.count(4) > sizes.count(3) else 3
    place = done.index("capture")
    assert done[:place].count(f"run {captured}") == 3
    assert f"replay {captured}" in done[place:]
    assert f"run {captured}" not in done[place:]
    optimizer.param_groups[0]["momentum"] = 0.5
    update(*batch(captured))
    assert done[-1] == f"run {captured}"


def test_a_captured_update_accepts_any_strides_and_warns_about_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    update = CapturedUpdate(lambda *batch: torch.zeros(()), sgd(network()), torch.device("cpu"))
    done: list[str] = []

    def capture(given: list[Tensor]) -> None:
        update._inputs, update._loss = [tensor.clone() for tensor in given], torch.zeros(())
        update._graph = type("Graph", (), {"replay": lambda self: done.append("replay")})()

    monkeypatch.setattr(update, "_capture", capture)
    monkeypatch.setattr(update, "_on_side_stream", lambda *batch: done.append("run"))
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    for given in (images, images.contiguous(memory_format=torch.channels_last)) * 3:
        update(given, labels)
        if update._graph is not None:
            assert torch.equal(update._inputs[0], given)
    assert done == ["run"] * 3 + ["replay"] * 3
    with pytest.warns(UserWarning, match="an update runs uncaptured, since its batch has another shape"):
        update(images.double(), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(images.double(), labels)
    assert done[6:] == ["run"] * 2


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
