"""`CheckedModel`: its precisions, the logits that it refuses, and the models that it leaves as they were."""

from __future__ import annotations

import pytest
import torch
from evaluation_cases import EPSILON, examples, small_net
from torch import Tensor, nn

from rmcla_fast.attacks import evaluate
from rmcla_fast.attacks.checked_model import CheckedModel, untouched


def test_a_change_of_the_weights_changes_the_answer_under_autocast() -> None:
    model = small_net()
    images, _ = examples(4)
    asked = CheckedModel(model, precision="bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # here PyTorch would keep a copy of the weights in bf16
        before = asked(images)
        with torch.no_grad():
            model[-1].weight.neg_()
        after = asked(images)
    assert not torch.equal(before, after)
    assert torch.equal(after, CheckedModel(model, precision="bf16")(images))


def test_the_gradient_of_images_without_height_and_width_is_scaled_back() -> None:
    model = nn.Linear(12, 3)
    images = torch.rand(4, 12, requires_grad=True)
    (expected,) = torch.autograd.grad(1e-9 * model(images).sum(), images)
    (got,) = torch.autograd.grad(1e-9 * CheckedModel(model, precision="fp16")(images).sum(), images)
    torch.testing.assert_close(got, expected, rtol=5e-3, atol=0)


def test_the_scale_does_not_change_the_gradient_of_images_and_logits() -> None:
    """The size of the gradient is right as well, because DeepFool and Carlini-Wagner use it. A row may be zero."""
    model = small_net()
    images, labels = examples(6)
    direction = torch.nn.functional.one_hot(labels, 10) * torch.tensor([1.0, 1e-9, 1e-20, 0.0, 1e3, 1.0])[:, None]
    images.requires_grad_(True)
    (expected,) = torch.autograd.grad(model(images), images, direction)
    logits = CheckedModel(model, precision="fp16")(images)
    got, of_logits = torch.autograd.grad(logits, (images, logits), direction, retain_graph=True)
    assert torch.equal(of_logits, direction)
    for row in range(6):
        assert float((got[row] - expected[row]).norm()) <= 5e-3 * float(expected[row].norm())
    # Other libraries also take a second gradient of the same logits.
    (again,) = torch.autograd.grad(logits, images, torch.ones_like(direction))
    (whole,) = torch.autograd.grad(model(images), images, torch.ones_like(direction))
    torch.testing.assert_close(again, whole, atol=5e-3 * float(whole.abs().max()), rtol=0)


def test_the_model_is_refused_where_its_device_lacks_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        "rmcla_fast.attacks.checked_model.require_precision", lambda name, device: asked.append((name, device))
    )
    CheckedModel(small_net(), precision="bf16")
    assert asked == [("bf16", torch.device("cpu"))]


class LateBuffers(nn.Module):
    """Fills a buffer that was None, and registers another, in its first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.cache = images.mean()
        self.register_buffer("late", images.sum())
        return images.flatten(1)


def test_buffers_that_a_model_makes_in_an_attack_are_removed() -> None:
    model = LateBuffers()
    with untouched(model):
        model(torch.rand(2, 1, 2, 2))
        assert set(model.state_dict()) == {"cache", "late"}
    assert dict(model._buffers) == {"cache": None}
    assert not model.state_dict()


def test_a_gradient_whose_pixels_share_memory_is_one_that_attacks_can_use() -> None:
    """Autograd gives the gradient of a sum over the image as one number that is repeated."""

    class Sums(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            total = images.sum((1, 2, 3)) / 20
            return torch.stack([total, 4.8 - total, total / 2, total / 3, total / 4], 1)

    model = Sums()
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    found = evaluate(model, images, labels, attacks="clean,ce20,apgd", epsilon=0.3)
    darkest = model((images - 0.3).clamp(min=0)).argmax(1)
    assert found["clean"].accuracy == 100
    assert 0 < found["apgd"].accuracy < 100
    for name in ("ce20", "apgd"):
        assert torch.equal(found[name].right, darkest == labels)


def test_a_scripted_model_is_attacked_and_left_as_it_was() -> None:
    model = small_net()
    images, _ = examples(16)
    labels = model(images).argmax(1)
    scripted = torch.jit.script(model)
    found = evaluate(scripted, images, labels, attacks="ce20,apgd-ce", epsilon=EPSILON)
    plain = evaluate(model, images, labels, attacks="ce20,apgd-ce", epsilon=EPSILON)
    for name, result in plain.items():
        assert torch.equal(found[name].right, result.right)
    assert all(parameter.requires_grad for parameter in scripted.parameters())


@pytest.mark.parametrize("factor", [1e18, 1e25, 1e60, 1e200])
def test_no_factor_of_float64_logits_makes_a_model_robust(factor: float) -> None:
    """Above 2^64 the float32 losses of the attacks could be infinite, so such logits count as infinite."""

    class Wide(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.net, self.factor = small_net(), factor

        def forward(self, images: Tensor) -> Tensor:
            return self.factor * self.net(images).double()

    images, _ = examples(16)
    labels = small_net()(images).argmax(1)
    usual, huge = (evaluate(Wide(one), images, labels, attacks="clean,apgd", epsilon=EPSILON) for one in (1.0, factor))
    for name, result in huge.items():
        assert result.accuracy <= usual[name].accuracy
    assert (huge["clean"].nonfinite == 16) == (factor > 2**64)


class Strided(nn.Module):
    """A model that reads its filters with `view`, which filters in channels_last refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(10, 3, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(len(images), -1) @ self.filters.view(10, -1).T


@pytest.mark.parametrize(("model", "changes"), [(small_net(), True), (Strided(), False)])
def test_filters_are_in_the_layout_of_the_images_only_during_an_attack(model: nn.Module, changes: bool) -> None:
    images, labels = examples(16)
    filters = next(parameter for parameter in model.parameters() if parameter.dim() == 4)
    before, place = filters.detach().clone(), filters.data_ptr()
    layouts = []
    model.register_forward_hook(lambda *_: layouts.append(filters.stride(1)))
    evaluate(model, images, labels, attacks="apgd-ce", epsilon=EPSILON)
    assert (layouts[-1] == 1) == changes
    assert filters.data_ptr() == place
    assert filters.stride() == before.stride()
    assert torch.equal(filters, before)
