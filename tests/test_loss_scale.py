"""Tests of the loss scale of fp16 and of skipped updates."""

from __future__ import annotations

import copy

import pytest
import torch
from step_cases import batch, network, recipe, sgd, train, weights
from torch import nn

from rmcla_fast.training import TrainStep
from rmcla_fast.training.loss_scale import LossScale


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
    loss_scale.finish(model, sgd(model, fused=True), before)
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
