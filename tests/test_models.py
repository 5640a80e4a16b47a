"""The models: shapes, the parameter counts of the papers, normalisation, and the errors for bad arguments."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from rmcla_fast import models


@pytest.mark.parametrize(
    ("name", "parameters"), [("preact-resnet18", 11_172_170), ("wrn-28-10", 36_479_194), ("wrn-34-10", 46_160_474)]
)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = models.create(name, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", [8, 28, 32])
def test_small_cnn_accepts_images_of_several_sizes(size: int) -> None:
    assert models.create("small-cnn", 10, channels=1)(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_wide_and_preact_networks_have_finite_gradients(layout: torch.memory_format) -> None:
    for model in (models.WideResNet(7, depth=10, width=1), models.create("preact-resnet18", 7)):
        model.to(memory_format=layout)
        images = torch.rand(2, 3, 32, 32).contiguous(memory_format=layout).requires_grad_()
        logits = model(images)
        logits.sum().backward()
        assert logits.shape == (2, 7)
        assert images.grad is not None
        assert bool(images.grad.isfinite().all())


def test_wide_resnet_has_leaky_relus_with_slope_one_tenth() -> None:
    model = models.WideResNet(4, depth=10, width=1).eval()
    seen: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    nn.init.constant_(model.norm.bias, -1.0)
    nn.init.zeros_(model.norm.weight)
    model(torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], -0.1))


def test_normalisation_is_part_of_every_model_and_saved_with_its_weights() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    normalize = models.Normalize(3, mean, std)
    images = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(normalize(images), expected)
    for name in models.names()[:4]:
        with torch.device("meta"):
            buffers = dict(models.create(name, 10, 3, mean, std).named_buffers())
        assert [key for key in buffers if key.endswith((".mean", ".std"))], name


def test_only_weights_decay() -> None:
    model = models.create("preact-resnet18", 10)
    decayed, kept = models.weight_groups(model, 2e-4)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (2e-4, 0.0)
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_a_factory_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_networks")

    def tiny(num_classes: int, channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 4, num_classes))

    module.tiny = tiny  # type: ignore[attr-defined]
    module.wrong = lambda **_: "a network"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_networks", module)
    assert models.create("their_networks:tiny", 5, 2)(torch.rand(3, 2, 2, 2)).shape == (3, 5)
    with pytest.raises(TypeError, match=r"model 'their_networks:wrong' must return a torch.nn.Module; got str"):
        models.create("their_networks:wrong", 5)
    for missing in ("their_networks:nothing", "no_such_package:net", ":x"):
        with pytest.raises(ValueError, match=r"cannot be found"):
            models.create(missing, 5)


def test_resnet50_runs_or_says_what_to_install() -> None:
    try:
        model = models.create("resnet50", 4)
    except ImportError as error:
        assert "pip install torchvision" in str(error)  # noqa: PT017
    else:
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("preact-resnet-18", 10), "no model is called 'preact-resnet-18'; did you mean 'preact-resnet18'"),
        (("small-cnn", 1), "num_classes must be at least 2; got 1"),
        (("small-cnn", 2.0), "num_classes must be an int; got float"),
        (("small-cnn", 10, 0), "channels must be at least 1; got 0"),
        (("small-cnn", 10, 3, (0.5,)), "mean must have 3 numbers, one per channel; got 1"),
        (("small-cnn", 10, 1, (0.5,), (0.0,)), "std must be finite and positive; got [0.0]"),
        (("small-cnn", 10, 1, (float("nan"),)), "mean must be finite; got [nan]"),
        ((None, 10), "name must be a str; got NoneType"),
        (("math:pi", 10), "model 'math:pi' must be a function or a class; got float"),
        (("resnet50", 10, 3, ()), "mean must have 3 numbers, one per channel; got 0"),
        (("resnet50", 10, 1), "channels must be 3 for resnet50; got 1"),
    ],
)
def test_a_bad_argument_is_an_error_of_one_sentence(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        models.create(*arguments)  # type: ignore[arg-type]
    assert words in str(raised.value)


def test_a_bad_depth_of_a_wide_resnet_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 with n at least 1; got 29"):
        models.WideResNet(10, depth=29)


def test_images_with_another_number_of_channels_are_an_error() -> None:
    model = models.create("small-cnn", 10, 3)
    with pytest.raises(ValueError, match="images must have 3 channels; got 1"):
        model(torch.rand(2, 1, 8, 8))
