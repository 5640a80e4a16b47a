"""The operators inside the transforms of torch.func, where plain torch runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from rmcla_fast import joint_gradient, joint_objective, models, soft_cross_entropy

CLASSES, ROWS = 6, 5
TARGETS = ("mc", "ll", "untargeted", "margin")


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(ROWS, CLASSES, generator=generator, dtype=dtype)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    return logits, labels, torch.rand(ROWS, CLASSES, generator=generator, dtype=dtype)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the gradient by autograd, outside of any transform."""
    at = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(at), at)
    return found


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "classes": lambda z: soft_cross_entropy(z, rows()[1], label_smoothing=0.1),
    "soft labels": lambda z: soft_cross_entropy(z, rows()[2], reduction="sum"),
    **{
        target: lambda z, target=target: joint_objective(z, rows()[1], target=target).objective.sum()  # type: ignore[misc]
        for target in TARGETS
    },
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_first_derivatives_are_those_of_autograd(loss: Callable[[Tensor], Tensor]) -> None:
    logits, direction = rows()[0], torch.ones(ROWS, CLASSES, dtype=torch.float64)
    expected = gradient(loss, logits)
    torch.testing.assert_close(grad(loss)(logits), expected)
    torch.testing.assert_close(jacrev(loss)(logits), expected)
    value, back = vjp(loss, logits)
    torch.testing.assert_close(value, loss(logits))
    torch.testing.assert_close(back(torch.ones_like(value))[0], expected)
    torch.testing.assert_close(jvp(loss, (logits,), (direction,))[1], (expected * direction).sum())


def test_the_second_derivative_is_that_of_plain_torch() -> None:
    logits, labels, _ = rows()
    found = hessian(lambda z: soft_cross_entropy(z, labels))(logits)
    torch.testing.assert_close(found, hessian(lambda z: torch.nn.functional.cross_entropy(z, labels))(logits))


@pytest.mark.parametrize("target", TARGETS)
def test_vmap_gives_what_the_whole_batch_gives(target: str) -> None:
    logits, labels, soft = rows()
    alone = vmap(lambda z, y: joint_gradient(z[None], y[None], target=target))(logits, labels)
    for found, expected in zip(alone, joint_gradient(logits, labels, target=target), strict=True):
        torch.testing.assert_close(found.squeeze(1), expected)
    losses = vmap(lambda z, y: soft_cross_entropy(z[None], y[None]))(logits, soft)
    torch.testing.assert_close(losses, soft_cross_entropy(logits, soft, reduction="none"))


def test_gradients_of_each_image_in_the_weights() -> None:
    model = models.create("small-cnn", 10, 1)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    buffers = dict(model.named_buffers())
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**weights, **buffers}, (image[None],))
        return soft_cross_entropy(logits, label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
    for row in range(4):
        model.zero_grad()
        soft_cross_entropy(model(images[row : row + 1]), labels[row : row + 1]).backward()
        for name, weight in model.named_parameters():
            torch.testing.assert_close(found[name][row], weight.grad, rtol=1e-4, atol=1e-6)


def test_the_joint_gradient_is_not_differentiable_in_a_transform_either() -> None:
    logits, labels, _ = rows()
    assert not grad(lambda z: joint_gradient(z, labels).grad_logits.square().sum())(logits).any()
    assert not grad(lambda z: joint_objective(z, labels).soft_labels.square().sum())(logits).any()


def test_a_label_outside_the_classes_gives_nan_in_vmap() -> None:
    logits, labels, _ = rows()
    labels[2] = CLASSES
    losses = vmap(lambda z, y: soft_cross_entropy(z[None], y[None]))(logits, labels)
    assert losses.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 2.0**970])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_row_that_is_not_finite_has_no_gradient_that_looks_like_one(
    loss: Callable[[Tensor], Tensor], bad: float
) -> None:
    logits, _, _ = rows()
    logits[2, 1] = bad
    expected = gradient(loss, logits)
    found = grad(loss)(logits)
    assert found[2].isnan().all()
    assert torch.equal(found.isnan(), expected.isnan())
