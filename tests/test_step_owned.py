"""What a step trains: the weights that the optimizer owns, in types that it can train, and their average."""

from __future__ import annotations

import pytest
import torch
from any_model_cases import (
    RECIPE,
    After,
    Observer,
    convolutional,
    images_and_labels,
    linear,
    one_update,
)
from torch import nn

from rmcla_fast.training import ExponentialAverage, TrainStep


def test_an_optimizer_over_the_head_alone_moves_it_as_if_the_rest_were_frozen() -> None:
    moved = []
    for frozen in (False, True):
        model, (images, labels) = convolutional(), images_and_labels(16)
        head = model[-1]
        model.requires_grad_(not frozen)
        head.requires_grad_(True)
        kept = [parameter for parameter in model.parameters() if not any(parameter is one for one in head.parameters())]
        for parameter in kept:
            parameter.grad = None if frozen else torch.ones_like(parameter)  # the caller's own
        before = head.weight.detach().clone()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        step = TrainStep(model, optimizer, RECIPE, clip_norm=1e-2, accumulate=2)
        for _ in range(3):
            step(images, labels)
        moved.append((head.weight - before).detach())
        for parameter in kept:
            assert parameter.grad is None if frozen else torch.equal(parameter.grad, torch.ones_like(parameter))
    torch.testing.assert_close(*moved, rtol=1e-5, atol=0)


def test_weights_that_the_optimizer_gets_later_are_trained() -> None:
    model, (images, labels) = convolutional(), images_and_labels(16)
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=0.1)
    step = TrainStep(model, optimizer, RECIPE)
    step(images, labels)
    before = model[0].weight.detach().clone()
    optimizer.add_param_group({"params": model[0].parameters()})
    step(images, labels)
    assert not torch.equal(model[0].weight, before)


def test_a_step_with_nothing_to_train_is_refused() -> None:
    model = linear().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be trained"):
        TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), RECIPE)
    with pytest.raises(ValueError, match="optimizer must hold parameters of model"):
        TrainStep(linear(), torch.optim.SGD(linear().parameters(), lr=0.1), RECIPE)
    unused = After()
    unused.add_module("unused", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the loss depends on none of the weights that the optimizer holds"):
        TrainStep(unused, torch.optim.SGD(unused.unused.parameters(), lr=0.1), RECIPE)(*images_and_labels())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.float64), ("bf16", torch.float16), ("fp16", torch.bfloat16)]
)
def test_weights_of_a_third_type_are_refused_in_16_bits(precision: str, dtype: torch.dtype) -> None:
    model = linear().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    with pytest.raises(ValueError, match=f"^precision '{precision}' needs .*; the model's are {dtype}"):
        TrainStep(model, optimizer, RECIPE, precision=precision)


def test_a_model_that_was_made_in_inference_mode_cannot_be_trained() -> None:
    with torch.inference_mode():
        model = convolutional()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"made outside of torch\.inference_mode"):
        TrainStep(linear(), torch.optim.SGD(linear().parameters(), lr=0.1), RECIPE)
    for make in (one_update, lambda model, *_: ExponentialAverage(model, 0.9)):
        with pytest.raises(ValueError, match=r"model must be made outside of torch\.inference_mode to be trained"):
            make(model, *images_and_labels())


def test_an_average_follows_buffers_that_the_first_forward_pass_makes() -> None:
    model, (images, labels) = Observer(), images_and_labels()
    model.register_buffer("filled", None)
    model.register_forward_pre_hook(lambda module, inputs: setattr(module, "filled", inputs[0].detach().mean()))
    ema = ExponentialAverage(model, 0.5)
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), RECIPE, ema=ema)
    for _ in range(2):
        step(images, labels)
    average = dict(ema.module.named_buffers())
    assert set(average) == set(dict(model.named_buffers())) == {"count", "hidden", "replaced", "filled", "late"}
    assert average["filled"].isfinite()


def test_an_average_of_16_bit_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="model must have float32 weights for an average"):
        ExponentialAverage(linear().bfloat16(), 0.999)


def test_an_average_does_not_lend_the_callers_images() -> None:
    images, _ = images_and_labels()
    before = images.clone()
    ExponentialAverage(After(before=lambda _, x: x.sub_(0.5)), 0.9)(images)
    assert torch.equal(images, before)


def test_an_average_of_complex_weights_is_an_average() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    ema = ExponentialAverage(model, 0.75)
    with torch.no_grad():
        model.phase.mul_(3)
    ema.update(model)
    assert torch.equal(ema.module.phase, torch.full((2,), 1.5, dtype=torch.complex64))


def test_the_order_of_the_optimizers_groups_does_not_change_a_bit() -> None:
    found = []
    for order in (1, -1):
        model, (images, labels) = convolutional(), images_and_labels(16)
        groups = [{"params": [parameter]} for parameter in model.parameters()][::order]
        step = TrainStep(model, torch.optim.SGD(groups, lr=0.1), RECIPE, clip_norm=1e-2)
        for _ in range(3):
            step(images, labels)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*found)
