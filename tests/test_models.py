"""The models: shapes, the parameter counts of the papers, normalisation, and the errors for bad arguments."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rmcla_fast import models
from rmcla_fast.models.preact_resnet import PreActBlock
from rmcla_fast.models.resnet18 import BasicBlock

RESNETS_18 = ("resnet18", "resnet18-silu", "preact-resnet18", "preact-resnet18-silu")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet18-silu", 11_173_962),
        ("preact-resnet18", 11_172_170),
        ("preact-resnet18-silu", 11_172_170),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
    ],
)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = models.create(name, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", [8, 28, 32])
def test_small_cnn_accepts_images_of_several_sizes(size: int) -> None:
    assert models.create("small-cnn", 10, channels=1)(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_residual_networks_have_finite_gradients(layout: torch.memory_format) -> None:
    for model in (models.WideResNet(7, depth=10, width=1), *(models.create(name, 7) for name in RESNETS_18)):
        model.to(memory_format=layout)
        images = torch.rand(2, 3, 32, 32).contiguous(memory_format=layout).requires_grad_()
        logits = model(images)
        logits.sum().backward()
        assert logits.shape == (2, 7)
        assert images.grad is not None
        assert bool(images.grad.isfinite().all())


@pytest.mark.parametrize("name", RESNETS_18)
def test_a_resnet18_takes_images_of_32_and_64_pixels(name: str) -> None:
    model = models.create(name, 200).eval()
    for size in (32, 64):
        features: list[torch.Tensor] = []
        handle = model.blocks.register_forward_hook(lambda _, __, output, kept=features: kept.append(output))
        assert model(torch.rand(2, 3, size, size)).shape == (2, 200)
        handle.remove()
        assert features[0].shape[2:] == (size // 8, size // 8)


@pytest.mark.parametrize("name", RESNETS_18)
def test_a_resnet18_has_the_same_logits_in_channels_last(name: str) -> None:
    model = models.create(name, 10).double().eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    logits = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), logits)


def normalized(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return batch norm in training mode as a formula."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    weight, bias = (value.reshape(1, -1, 1, 1) for value in (norm.weight, norm.bias))
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


PLAIN = {"relu": lambda x: x.clamp(min=0), "silu": lambda x: x / (1 + (-x).exp())}


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (6, 8, 2)])
@pytest.mark.parametrize("activation", PLAIN)
def test_a_block_computes_the_formula_of_the_paper(activation: str, inputs: int, outputs: int, stride: int) -> None:
    act = PLAIN[activation]
    x = torch.randn(4, inputs, 8, 8, dtype=torch.float64)

    def conv(layer: nn.Module, images: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return nn.functional.conv2d(images, layer.weight, stride=stride, padding=layer.weight.shape[-1] // 2)

    def post(block: BasicBlock) -> torch.Tensor:
        out = act(normalized(block.norm1, conv(block.conv1, x, stride)))
        shortcut = x if stride == 1 else normalized(block.shortcut[1], conv(block.shortcut[0], x, stride))
        return act(normalized(block.norm2, conv(block.conv2, out)) + shortcut)

    def pre(block: PreActBlock) -> torch.Tensor:
        first = act(normalized(block.norm1, x))
        shortcut = x if stride == 1 else conv(block.shortcut, first, stride)
        return conv(block.conv2, act(normalized(block.norm2, conv(block.conv1, first, stride)))) + shortcut

    for kind, formula in ((BasicBlock, post), (PreActBlock, pre)):
        block = kind(inputs, outputs, stride, activation).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter)
        given = x.clone()
        torch.testing.assert_close(block(given), formula(block))
        assert torch.equal(given, x)  # what works in place must leave the input of the block alone


class Operators(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RESNETS_18)
def test_a_network_has_one_activation_everywhere(name: str) -> None:
    model = models.create(name, 10)
    with Operators() as seen:
        model(torch.rand(2, 3, 32, 32))
    activations = {"relu", "silu", "leaky_relu", "clamp", "clamp_min", "threshold"} & seen.names
    assert activations == {"silu" if name.endswith("-silu") else "relu"}


def test_width_is_the_number_of_channels_of_the_first_stage() -> None:
    for network in (models.ResNet18, models.PreActResNet18):
        model = network(10, width=5)
        assert [model.blocks[k].conv2.weight.shape[0] for k in range(8)] == [5, 5, 10, 10, 20, 20, 40, 40]
        with pytest.raises(ValueError, match=r"^width must be at least 1; got 0$"):
            network(10, width=0)
        with pytest.raises(ValueError, match=r"^activation must be relu or silu; got 'gelu'$"):
            network(10, activation="gelu")


def test_the_names_of_the_weights_stay_as_they_are_in_checkpoints() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def block(place: int, shortcut: tuple[str, ...]) -> list[str]:
        own = [f"norm{k}.{key}" for k in (1, 2) for key in norm] + ["conv1.weight", "conv2.weight"]
        return [f"blocks.{place}.{key}" for key in (*own, *(shortcut if place in (2, 4, 6) else ()))]

    for names, shortcut in (
        (RESNETS_18[2:], ("shortcut.weight",)),
        (RESNETS_18[:2], ("shortcut.0.weight", *(f"shortcut.1.{key}" for key in norm))),
    ):
        expected = {"normalize.mean", "normalize.std", "stem.weight", "classifier.weight", "classifier.bias"}
        expected |= {f"norm.{key}" for key in norm} | {key for place in range(8) for key in block(place, shortcut)}
        for name in names:
            with torch.device("meta"):
                assert set(models.create(name, 10).state_dict()) == expected, name


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
    for name in models.names()[:-1]:  # resnet50 needs torchvision or timm
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
        (("resnet-18-silu", 10), "no model is called 'resnet-18-silu'; did you mean 'resnet18-silu'"),
        (("small-cnn", 1), "num_classes must be at least 2; got 1"),
        (("small-cnn", 2.0), "num_classes must be an int; got float"),
        (("small-cnn", 10, 0), "channels must be at least 1; got 0"),
        (("small-cnn", 10, 3, (0.5,)), "mean must have 3 numbers, one per channel; got 1"),
        (("small-cnn", 10, 1, (0.5,), (0.0,)), "std must be finite and positive; got [0.0]"),
        (("small-cnn", 10, 1, (float("nan"),)), "mean must be finite; got [nan]"),
        ((None, 10), "name must be a str; got NoneType"),
        (("small-cnn", 10, 3, None, None, 8), "image_size must be a height and a width; got 8"),
        (("small-cnn", 10, 3, None, None, (8,)), "image_size must be a height and a width; got (8,)"),
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
